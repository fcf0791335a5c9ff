package node

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// rehearsing is a function whose snapshots are tried with a request.
func rehearsing(f *api.Function) {
	f.Rehearsal = api.Rehearsal{Path: "/resize?x=1", Body: "a picture", Header: map[string]string{"X-Kind": "small"}}
	f.Timeout = api.Duration(30 * time.Second)
}

// A function's rehearsal is made of the instance that is restored from its new
// snapshot, of no other, and before what was touched is kept.
func TestRehearsal(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		var asked []string
		w.set(func() {
			w.hang = func(r *http.Request) bool {
				asked = append(asked, r.Method+" "+r.RequestURI+" "+r.Header.Get("X-Kind"))
				if w.trials() != 0 {
					t.Error("it was kept before the rehearsal")
				}
				return false
			}
		})
		var details []string
		_, err := n.Deploy(t.Context(), hello(rehearsing), func(e api.DeployEvent) {
			if e.Stage == api.StageChecking {
				details = append(details, e.Detail)
			}
		})
		must(t, err)
		if got := strings.Join(asked, ", "); got != "OPTIONS * , OPTIONS * , POST /resize?x=1 small" {
			t.Errorf("asked %s", got)
		}
		if w.trials() != 1 || len(details) != 2 || details[0] != "POST /resize?x=1" {
			t.Errorf("%d trials are kept; told %q", w.trials(), details)
		}
	})
}

// A rehearsal that fails fails the deployment, says why, and leaves what was there
// and nothing else.
func TestRehearsalFails(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(*world)
		want  string
	}{
		"refused":  {func(w *world) { w.status = 422 }, `POST /resize?x=1, restored from its snapshot: it is answered with 422`},
		"hangs":    {func(w *world) { w.hang = func(r *http.Request) bool { return r.Method == http.MethodPost } }, "no whole answer within 30s"},
		"shutdown": {func(w *world) { w.endsAfter = 3 * time.Second; w.serviceTime = 2500 * time.Millisecond }, "server ended: exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				before := snapshotIDs(t, n)
				w.set(func() { tc.fault(w) })
				_, err := n.Deploy(t.Context(), hello(rehearsing), nil)
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("error %v, want %q", err, tc.want)
				}
				if f, _ := n.Function("hello"); !f.Rehearsal.IsZero() {
					t.Error("the new version is in force")
				}
				if after := snapshotIDs(t, n); len(after) != 1 || after[0] != before[0] || w.trials() != 1 {
					t.Errorf("snapshots %v, want %v; %d trials are kept", after, before, w.trials())
				}
			})
		})
	}
}

func (w *world) trials() (n int) {
	w.set(func() { n = w.tried })
	return n
}

// A snapshot that is asked for, or made after some invocations, is tried like a
// deployment's: what its first start needs is known. One that fails that is not there.
func TestEverySnapshotIsTried(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { rehearsing(f); f.Snapshot.AfterInvocations = 2 }))
		if w.trials() != 0 {
			t.Errorf("%d tried without a snapshot", w.trials())
		}
		for range 2 {
			l := acquire(t, n, AcquireOptions{})
			l.Release(api.Invocation{Status: 200})
		}
		time.Sleep(time.Minute)
		if got := snapshotIDs(t, n); len(got) != 1 || w.trials() != 1 {
			t.Errorf("after two invocations: snapshots %v, %d tried", got, w.trials())
		}
		_, err := n.CreateSnapshot(t.Context(), "hello", nil)
		must(t, err)
		if got := snapshotIDs(t, n); len(got) != 2 || w.trials() != 2 {
			t.Errorf("asked for: snapshots %v, %d tried", got, w.trials())
		}
		w.set(func() { w.status = 500 })
		if _, err := n.CreateSnapshot(t.Context(), "hello", nil); err == nil || !strings.Contains(err.Error(), "answered with 500") {
			t.Errorf("error %v", err)
		}
		if got := snapshotIDs(t, n); len(got) != 2 || w.trials() != 2 {
			t.Errorf("after one that failed: snapshots %v, %d tried", got, w.trials())
		}
	})
}
