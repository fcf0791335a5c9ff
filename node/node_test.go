package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// hello is a function with small memory, so that its fake snapshots are quick.
func hello(change func(*api.Function)) api.Function {
	fn := api.Function{Name: "hello", Image: "hello", MemoryMiB: 64}
	if change != nil {
		change(&fn)
	}
	return fn
}

func deploy(t testing.TB, n *Node, fn api.Function) {
	t.Helper()
	if _, err := n.Deploy(t.Context(), fn, nil); err != nil {
		t.Fatal(err)
	}
}

func acquire(t testing.TB, n *Node, o AcquireOptions) Lease {
	t.Helper()
	l, err := n.Acquire(t.Context(), "hello", o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func get(t testing.TB, l Lease) string {
	t.Helper()
	resp, err := (&http.Client{Transport: l.Transport(false)}).Get("http://hello/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func states(n *Node) string {
	var s []string
	for _, i := range n.Instances("") {
		s = append(s, string(i.State))
	}
	return strings.Join(s, " ")
}

func TestDeployThenColdWarmExpired(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		var stages []string
		_, err := n.Deploy(t.Context(), hello(nil), func(e api.DeployEvent) { stages = append(stages, string(e.Stage)) })
		if err != nil {
			t.Fatal(err)
		}
		want := "pulling pulling pulling booting booting ready snapshotting snapshotting checking checking done"
		if got := strings.Join(stages, " "); got != want {
			t.Errorf("stages %q, want %q", got, want)
		}
		if w.boots != 1 || len(n.Instances("")) != 0 {
			t.Fatalf("%d boots, instances %q: want one boot and none left", w.boots, states(n))
		}

		l := acquire(t, n, AcquireOptions{})
		if l.Start() != api.StartRestore || w.restores != 2 { // one is the deployment's own
			t.Errorf("start %s, want a restore", l.Start())
		}
		ph := l.Phases()
		if ph.Spawn != 50*time.Millisecond || ph.Load != 15*time.Millisecond || ph.Boot != 0 {
			t.Errorf("phases %+v", ph)
		}
		if sum(ph)+ph.Queue > 101*time.Millisecond {
			t.Errorf("phases sum up to more than the wait: %+v", ph)
		}
		if got := get(t, l); got != l.Instance() {
			t.Errorf("answer from %s, want %s", got, l.Instance())
		}
		first := l.Instance()
		l.Release(api.Invocation{Status: 200, Time: time.Now()})
		l.Release(api.Invocation{Status: 500}) // must change nothing

		l = acquire(t, n, AcquireOptions{})
		if l.Start() != api.StartWarm || l.Instance() != first || states(n) != "busy" {
			t.Errorf("second: %s on %s, %s", l.Start(), l.Instance(), states(n))
		}
		l.Release(api.Invocation{Status: 200, Time: time.Now()})

		time.Sleep(59 * time.Second)
		synctest.Wait()
		if states(n) != "idle" {
			t.Errorf("after 59 s: %q, want idle", states(n))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if states(n) != "" {
			t.Errorf("after 61 s: %q, want none", states(n))
		}

		recs, err := n.Invocations(t.Context(), InvocationFilter{Function: "hello"})
		if err != nil || len(recs) != 2 {
			t.Fatalf("%d records, %v: want 2", len(recs), err)
		}
		r := recs[0]
		if r.Start != api.StartRestore || r.Instance != first || r.Snapshot == "" || r.Memory == nil || r.Memory.Faults != 7 ||
			r.Phases.Load != 15*time.Millisecond || r.Status != 200 {
			t.Errorf("first record %+v", r)
		}
		if r := recs[1]; r.Start != api.StartWarm || r.Memory != nil || r.Phases.Load != 0 {
			t.Errorf("second record %+v", r)
		}
		if w.responded != 1 || len(w.records) != 2 {
			t.Errorf("responded %d times, hook called %d times", w.responded, len(w.records))
		}
	})
}

func TestRestoreSequence(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.DefaultPolicy = "reap" })
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		l := acquire(t, n, AcquireOptions{})
		l.Release(api.Invocation{})
		calls := strings.Join(w.calls, ", ")
		order := func(a, b string) {
			t.Helper()
			i, j := strings.Index(calls, a), strings.Index(calls, b)
			if i < 0 || j < 0 || i > j {
				t.Errorf("want %q before %q in %s", a, b, calls)
			}
		}
		// What is read ahead holds memory that all starts share: not before this one
		// waits for no slot any more.
		order("open", "slot")
		order("slot", "prefetch")
		order("prefetch", "restore")
		order("restore", "attach")
		order("attach", "install")
		order("install", "resume")
		order("dial 10", "connect")
		order("resume", "clone")
	})
}

func TestQueueScalesOutAndIsLimited(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances, f.QueueLimit = 3, 10 }))
		var wg sync.WaitGroup
		var mu sync.Mutex
		used := map[string]int{}
		for range 10 {
			wg.Go(func() {
				l, err := n.Acquire(t.Context(), "hello", AcquireOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				mu.Lock()
				used[l.Instance()]++
				mu.Unlock()
				l.Release(api.Invocation{Status: 200})
			})
		}
		synctest.Wait()
		if got := states(n); got != "starting starting starting" {
			t.Errorf("instances %q, want three starting", got)
		}
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); !errors.Is(err, ErrQueueFull) {
			t.Errorf("11th request: %v, want ErrQueueFull", err)
		}
		// Once three have been served, seven of a second each wait for three places,
		// and three more with them.
		time.Sleep(2 * time.Second)
		var full *QueueFullError
		for range 10 {
			go func() {
				if l, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); err == nil {
					l.Release(api.Invocation{Status: 200})
				}
			}()
		}
		synctest.Wait()
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); !errors.As(err, &full) || full.After < time.Second || full.After > 4*time.Second {
			t.Errorf("when some have been served: %+v, %v", full, err)
		}
		wg.Wait()
		if len(used) != 3 {
			t.Errorf("used %v, want three instances", used)
		}
	})
}

func TestConcurrencySharesInstances(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.Concurrency = 4 }))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				l, err := n.Acquire(t.Context(), "hello", AcquireOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				l.Release(api.Invocation{})
			})
		}
		wg.Wait()
		if w.restores -= 1; w.restores != 2 { // the deployment's own
			t.Errorf("%d instances for 8 requests of 4 each, want 2", w.restores)
		}
	})
}

func TestDeployFailuresChangeNothing(t *testing.T) {
	full := errors.New("no space left on device")
	for name, tc := range map[string]struct {
		fn   func(*api.Function)
		set  func(*world)
		want []string
	}{
		"invalid":        {fn: func(f *api.Function) { f.Port = 99999 }, want: []string{"port is 99999"}},
		"unknown policy": {fn: func(f *api.Function) { f.MemoryPolicy = "none-such" }, want: []string{"no such policy"}},
		"no image":       {fn: func(f *api.Function) { f.Image = "missing" }, want: []string{"no such image"}},
		"boot fails":     {set: func(w *world) { w.bootErr = errors.New("qemu: no") }, want: []string{"qemu: no"}},
		"exits": {set: func(w *world) { w.readyErr = errors.New("exit status 1"); w.say = []string{"one", "cannot find numpy"} },
			want: []string{"exit status 1", "cannot find numpy"}},
		"never ready": {fn: func(f *api.Function) { f.ReadyTimeout = api.Duration(time.Second) },
			want: []string{"not ready after 1s (ready_timeout)"}},
		"snapshot fails": {set: func(w *world) { w.snapshotErr = full }, want: []string{"no space left"}},
		"too big":        {fn: func(f *api.Function) { f.MemoryMiB = 4096 }, want: []string{"1024 MiB that this node has"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, func(c *Config) { c.MemoryMiB = 1024 })
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				before, _ := n.Function("hello")
				if tc.set != nil {
					tc.set(w)
				}
				fn := hello(func(f *api.Function) { f.Image = "hello2" })
				if tc.fn != nil {
					tc.fn(&fn)
				}
				_, err := n.Deploy(t.Context(), fn, nil)
				if err == nil {
					t.Fatal("no error")
				}
				for _, want := range tc.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
				if after, ok := n.Function("hello"); !ok || after.Image != before.Image || after.Created != before.Created {
					t.Errorf("function is now %+v", after)
				}
				if s, _ := n.Snapshots(t.Context(), "hello"); len(s) != 1 || !s[0].Usable {
					t.Errorf("snapshots are now %+v", s)
				}
				if l := acquire(t, n, AcquireOptions{}); l.Start() != api.StartRestore {
					t.Errorf("start %s", l.Start())
				} else {
					l.Release(api.Invocation{})
				}
			})
		})
	}
}

func TestRedeployReplacesAndDrains(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		old := acquire(t, n, AcquireOptions{})
		idle := acquire(t, n, AcquireOptions{})
		idle.Release(api.Invocation{})
		deploy(t, n, hello(func(f *api.Function) { f.Env = map[string]string{"V": "2"} }))
		synctest.Wait()
		if states(n) != "draining" {
			t.Errorf("instances %q, want only the busy one, draining", states(n))
		}
		s, _ := n.Snapshots(t.Context(), "hello")
		if len(s) != 2 || !s[0].Usable || s[1].Usable {
			t.Errorf("snapshots %+v, want the new one, and the old one for a rollback", s)
		}
		l := acquire(t, n, AcquireOptions{})
		if l.Instance() == old.Instance() || l.Start() != api.StartRestore {
			t.Errorf("new request on %s (%s)", l.Instance(), l.Start())
		}
		if got := get(t, old); got != old.Instance() {
			t.Errorf("the old instance answers %q", got)
		}
		old.Release(api.Invocation{})
		l.Release(api.Invocation{})
		synctest.Wait()
		if states(n) != "idle" {
			t.Errorf("instances %q, want one idle", states(n))
		}
	})
}

func TestReopenKeepsFunctionsAndSnapshots(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	w.bootTime = 0
	deploy(t, n, hello(nil))
	_, err := Open(t.Context(), Config{DataDir: w.dir}, w.deps())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("a second daemon: %v, want ErrLocked", err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// What a crash may leave.
	for _, dir := range []string{"run/i-0123456789abcdef", "mem/i-0123456789abcdef", "snapshots/.tmp-x", "logs/gone"} {
		if err := os.MkdirAll(filepath.Join(w.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n = w.open(t, nil)
	if names := n.FunctionNames(); len(names) != 1 || names[0] != "hello" {
		t.Fatalf("functions %v", names)
	}
	l := acquire(t, n, AcquireOptions{})
	if l.Start() != api.StartRestore {
		t.Errorf("start %s", l.Start())
	}
	l.Release(api.Invocation{})
	if _, err := os.Stat(filepath.Join(w.dir, "logs/gone")); err == nil {
		t.Error("the log of no function is still there")
	}
}

func TestHalfMadeDeployIsGoneAtOpen(t *testing.T) {
	w := newWorld(t)
	w.bootTime = 0
	n := w.open(t, nil)
	deploy(t, n, hello(nil))
	ids := snapshotIDs(t, n)
	// As if the daemon had died between the publishing and the commit.
	if err := n.db.doom(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = w.open(t, nil)
	if ids := snapshotIDs(t, n); len(ids) != 0 {
		t.Errorf("snapshots %v, want none", ids)
	}
}

func TestInstanceDeath(t *testing.T) {
	for name, tc := range map[string]struct {
		kill func(*fakeMachine, *instance)
		want string
	}{
		"vmm":      {func(m *fakeMachine, _ *instance) { m.die(errors.New("signal: killed")) }, "its VMM ended: signal: killed"},
		"function": {func(m *fakeMachine, _ *instance) { close(m.exited) }, "the function's server ended: exit status 3"},
		"memory": {func(_ *fakeMachine, i *instance) {
			i.vm.WithSession(onFake(func(s *fakeSession) { close(s.failed) }))
		}, "its memory cannot be served any more: disk on fire"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, func(c *Config) { c.DefaultPolicy = "reap" })
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				l := acquire(t, n, AcquireOptions{})
				w.mu.Lock()
				m := w.machines[l.Instance()]
				w.mu.Unlock()
				if l.Err() != nil {
					t.Errorf("alive: %v", l.Err())
				}
				tc.kill(m, l.(*lease).inst)
				<-l.Gone()
				if err := l.Err(); err == nil || err.Error() != tc.want {
					t.Errorf("error %v, want %q", err, tc.want)
				}
				synctest.Wait()
				if states(n) != "" {
					t.Errorf("instances %q, want none", states(n))
				}
				if _, err := l.Transport(false).RoundTrip(mustRequest(t)); err == nil {
					t.Error("a dead instance answers")
				}
				dead := l.Instance()
				l.Release(api.Invocation{Status: 502})
				l = acquire(t, n, AcquireOptions{})
				if l.Instance() == dead || l.Start() == api.StartWarm {
					t.Errorf("the next request was given %s by a %s start: the dead one is %s", l.Instance(), l.Start(), dead)
				}
				l.Release(api.Invocation{})
			})
		})
	}
}

func mustRequest(t testing.TB) *http.Request {
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://hello/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
