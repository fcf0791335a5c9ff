package node

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// What is called deployed answers requests that come from outside, booted and
// restored; else what was there stays, and the error says why.
func TestDeployedMeansThatItAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(*world)
		want  string
	}{
		"loopback only":           {func(w *world) { w.refuse = func(*fakeMachine) bool { return true } }, "127.0.0.1 only"},
		"loopback only, restored": {func(w *world) { w.refuse = func(m *fakeMachine) bool { return m.memory == "" } }, "but not when it is restored"},
		"silent":                  {func(w *world) { w.hang = func(*http.Request) bool { return true } }, "no answer within 10s"},
		"ends soon":               {func(w *world) { w.endsAfter = 300 * time.Millisecond }, "server ended: exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				before := snapshotIDs(t, n)
				w.set(func() { tc.fault(w); w.say = []string{"its last words"} })
				_, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Env = map[string]string{"NEW": "1"} }), nil)
				var start *StartError
				if !errors.As(err, &start) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("error %v, want %q", err, tc.want)
				}
				w.set(func() { w.refuse, w.hang, w.endsAfter = nil, nil, 0 })
				if f, _ := n.Function("hello"); f.Env["NEW"] != "" {
					t.Error("the new version is in force")
				}
				if after := snapshotIDs(t, n); len(after) != 1 || after[0] != before[0] {
					t.Errorf("snapshots %v, want %v", after, before)
				}
				l := acquire(t, n, AcquireOptions{Start: api.StartRestore})
				must(t, send(t, l, "/", time.Second, ""))
			})
		})
	}
}

// Who gives a function longer to become ready says that the host is slow: it has
// longer to answer, too.
func TestSlowHostHasLongerToAnswer(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		w.set(func() { w.hang = func(*http.Request) bool { return true } })
		for ready, want := range map[time.Duration]string{5 * time.Second: "within 10s", time.Minute: "within 10s", 10 * time.Minute: "within 1m40s"} {
			_, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.ReadyTimeout = api.Duration(ready) }), nil)
			if err == nil || !strings.Contains(err.Error(), "no answer "+want) {
				t.Errorf("with ready_timeout %v: %v, want %q", ready, err, want)
			}
		}
	})
}

// What the restored instance of a deployment touched is kept when it has answered,
// and only then.
func TestTrialIsKept(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		if w.tried != 1 || w.responded != 0 {
			t.Errorf("after a deployment: %d trials are kept, %d responses", w.tried, w.responded)
		}
		w.set(func() { w.refuse = func(m *fakeMachine) bool { return m.memory == "" } })
		if _, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Env = map[string]string{"NEW": "1"} }), nil); err == nil || w.tried != 1 {
			t.Errorf("a deployment that does not answer when restored: %v, %d trials are kept", err, w.tried)
		}
	})
}

// A start that is called off while its memory is opened lets go of that.
func TestCalledOffWhileMemoryOpens(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		ctx, cancel := context.WithCancel(t.Context())
		w.set(func() { w.onOpen = func() { cancel(); synctest.Wait() } })
		p := n.pool("hello")
		must(t, n.reserve(ctx, p.current.Load().fn.MemoryMiB))
		if _, err := n.tryRestored(ctx, p, p.current.Load()); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want that it was called off", err)
		}
	}) // the world is checked for what is left
}
