package node

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/microvm"
)

var _ microvm.Agent = (*guest.Session)(nil)

func TestTransitions(t *testing.T) {
	all := []api.InstanceState{api.InstanceStarting, api.InstanceIdle, api.InstanceBusy, api.InstanceDraining, api.InstanceStopped}
	legal := map[string]bool{
		"starting idle": true, "starting draining": true, "idle busy": true, "idle draining": true,
		"busy idle": true, "busy draining": true, "draining stopped": true,
	}
	for _, from := range all {
		for _, to := range all {
			got, err := next(from, to)
			var bad *TransitionError
			switch {
			case legal[string(from+" "+to)] && (err != nil || got != to):
				t.Errorf("%s to %s: %s, %v", from, to, got, err)
			case !legal[string(from+" "+to)] && (!errors.As(err, &bad) || got != from):
				t.Errorf("%s to %s: %s, %v; want it refused", from, to, got, err)
			}
		}
		if _, ok := transitions[from]; !ok {
			t.Errorf("state %s is not in the table", from)
		}
	}
}

func TestStartFailureFailsWaitersAndBacksOff(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.Snapshot.Off = true }))
		time.Sleep(2 * time.Minute) // the instance that was tried out expires
		w.set(func() { w.readyErr = errors.New("exit status 9") })
		boots := w.boots
		began := time.Now()
		for range 6 {
			_, err := n.Acquire(t.Context(), "hello", AcquireOptions{})
			var start *StartError
			if !errors.As(err, &start) || !strings.Contains(err.Error(), "exit status 9") {
				t.Fatalf("error %v", err)
			}
		}
		// 6 boots of 2 s with 0.1+0.2+0.4+0.8+1.6 s between them, each half as much
		// or half as much again.
		if took := time.Since(began) - 12*time.Second; w.boots-boots != 6 || took < 1550*time.Millisecond || took > 4650*time.Millisecond {
			t.Errorf("%d boots in %v", w.boots-boots, took)
		}
		w.set(func() { w.readyErr = nil })
		l := acquire(t, n, AcquireOptions{})
		l.Release(api.Invocation{})
		if p := n.pool("hello"); !p.retryAt.IsZero() || p.backoff.NextBackOff() > 150*time.Millisecond {
			t.Error("a start that went well does not end the backing off")
		}
	})
}

func TestRestoreFailureBoots(t *testing.T) {
	for _, what := range []string{"restore", "clone", "corrupt"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				switch what {
				case "restore":
					w.set(func() { w.restoreErr = errors.New("bad device state") })
				case "clone":
					w.set(func() { w.cloneErr = errors.New("no answer") })
				case "corrupt":
					path := filepath.Join(w.dir, "snapshots", snapshotIDs(t, n)[0], "memory")
					if err := os.Truncate(path, 4096); err != nil {
						t.Fatal(err)
					}
				}
				_, err := n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartRestore})
				if err == nil || errors.Is(err, ErrNoSnapshot) != (what == "corrupt") {
					t.Errorf("a restore was asked for: %v", err)
				}
				l := acquire(t, n, AcquireOptions{})
				if l.Start() != api.StartBoot || l.Phases().Init != w.bootTime || l.Phases().Load != 0 {
					t.Errorf("start %s, phases %+v", l.Start(), l.Phases())
				}
				l.Release(api.Invocation{})
				w.set(func() { w.restoreErr, w.cloneErr = nil, nil })
				time.Sleep(2 * time.Minute)
				l = acquire(t, n, AcquireOptions{})
				if l.Start() != api.StartRestore {
					t.Errorf("later: %s, want a restore", l.Start())
				}
				l.Release(api.Invocation{})
				s, _ := n.Snapshots(t.Context(), "hello")
				if want := map[string]int{"corrupt": 2}[what]; want > 0 && len(s) != want {
					t.Errorf("snapshots %+v, want the corrupt one and a new one", s)
				}
			})
		})
	}
}

func TestSnapshotMissingIsMadeInBackground(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		w.set(func() { w.info.Version = "2" }) // the VMM was upgraded
		s, _ := n.Snapshots(t.Context(), "hello")
		if len(s) != 1 || s[0].Usable || !strings.Contains(s[0].Problem, "vmm version") {
			t.Errorf("snapshots %+v", s)
		}
		l := acquire(t, n, AcquireOptions{})
		if l.Start() != api.StartBoot {
			t.Errorf("start %s", l.Start())
		}
		time.Sleep(10 * time.Second)
		l2 := acquire(t, n, AcquireOptions{})
		if l2.Start() != api.StartRestore {
			t.Errorf("next start %s", l2.Start())
		}
		if w.boots != 3 {
			t.Errorf("%d boots, want 3: deploy, request, snapshot", w.boots)
		}
		l.Release(api.Invocation{})
		l2.Release(api.Invocation{})
	})
}

func TestSnapshotAfterInvocations(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.Snapshot.AfterInvocations = 3 }))
		if states(n) != "idle" {
			t.Errorf("after deploy %q: want the instance that was tried out", states(n))
		}
		for range 3 {
			l := acquire(t, n, AcquireOptions{})
			if l.Start() != api.StartWarm {
				t.Errorf("start %s", l.Start())
			}
			l.Release(api.Invocation{})
		}
		synctest.Wait()
		s, _ := n.Snapshots(t.Context(), "hello")
		if len(s) != 1 || s[0].Reason != "after 3 invocations" || !s[0].Usable {
			t.Fatalf("snapshots %+v", s)
		}
		if states(n) != "" {
			t.Errorf("instances %q", states(n))
		}
		for range 5 {
			l := acquire(t, n, AcquireOptions{})
			l.Release(api.Invocation{})
		}
		if w.restores != 2 || w.boots != 1 { // one of them to see that it works
			t.Errorf("%d restores, %d boots", w.restores, w.boots)
		}
	})
}

func TestAloneAndWarmOptions(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = 2 }))
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartWarm}); !errors.Is(err, ErrNoneWarm) {
			t.Errorf("warm: %v", err)
		}
		shared := acquire(t, n, AcquireOptions{})
		shared.Release(api.Invocation{})
		for _, o := range []AcquireOptions{{Start: api.StartBoot}, {Start: api.StartRestore}, {Policy: "reap"}, {Start: api.StartRestore, Policy: "reap"}} {
			l := acquire(t, n, o)
			want := o.Start
			if want == "" {
				want = api.StartRestore
			}
			if l.Start() != want || l.Instance() == shared.Instance() {
				t.Errorf("%+v: %s", o, l.Start())
			}
			l.Release(api.Invocation{Status: 200})
			synctest.Wait()
			if states(n) != "idle" {
				t.Errorf("%+v: left %q", o, states(n))
			}
		}
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{Policy: "none-such"}); err == nil || !strings.Contains(err.Error(), "none-such") {
			t.Errorf("unknown policy: %v", err)
		}
		// At the limit an idle instance makes room.
		a := acquire(t, n, AcquireOptions{})
		b := acquire(t, n, AcquireOptions{})
		b.Release(api.Invocation{})
		c := acquire(t, n, AcquireOptions{Start: api.StartRestore})
		a.Release(api.Invocation{})
		c.Release(api.Invocation{})
	})
}

func TestWaiterLeaves(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		for _, o := range []AcquireOptions{{}, {Start: api.StartRestore}} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			_, err := n.Acquire(ctx, "hello", o)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the deadline's", err)
			}
			time.Sleep(time.Second)
		}
		if states(n) != "idle" { // the shared one is started all the same
			t.Errorf("instances %q", states(n))
		}
		l := acquire(t, n, AcquireOptions{})
		if l.Start() != api.StartWarm {
			t.Errorf("start %s", l.Start())
		}
		l.Release(api.Invocation{})
	})
}

func TestNodeBudget(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.MemoryMiB = 128 }) // two of 64
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		other := hello(func(f *api.Function) { f.Name = "other" })
		deploy(t, n, other)
		a, b := acquire(t, n, AcquireOptions{}), acquire(t, n, AcquireOptions{})
		got := make(chan Lease)
		go func() {
			l, err := n.Acquire(t.Context(), "other", AcquireOptions{})
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(n.Instances("other")) != 0 {
			t.Error("the budget is exceeded")
		}
		a.Release(api.Invocation{}) // idle now: it must make room
		l := <-got
		if w.restores -= 2; w.restores != 3 || // two are the deployments' own
			len(n.Instances("hello")) != 1 {
			t.Errorf("%d restores, hello has %d", w.restores, len(n.Instances("hello")))
		}
		l.Release(api.Invocation{})
		b.Release(api.Invocation{})
	})
}

func TestCloseDrains(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.StopGrace = time.Second })
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = 1 }))
		l := acquire(t, n, AcquireOptions{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); !errors.Is(err, ErrDraining) {
				t.Errorf("a waiting request: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { n.Drain(context.Background()) })
		time.Sleep(time.Second)
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); !errors.Is(err, ErrDraining) {
			t.Errorf("a new request: %v", err)
		}
		if _, err := n.Deploy(t.Context(), hello(nil), nil); !errors.Is(err, ErrDraining) {
			t.Errorf("a deploy: %v", err)
		}
		if got := get(t, l); got != l.Instance() {
			t.Errorf("the request in flight: %q", got)
		}
		l.Release(api.Invocation{Status: 200})
		wg.Wait()
		if w.calls[len(w.calls)-1] != "stop" {
			t.Errorf("the server was not asked to stop: %v", w.calls)
		}
		n.Record(api.Invocation{ID: "refused", Function: "hello", Time: time.Now(), Status: 503})
		time.Sleep(time.Second)
		if recs, err := n.Invocations(t.Context(), InvocationFilter{ID: "refused"}); err != nil || len(recs) != 1 {
			t.Errorf("records of a request that was refused while draining: %v %+v", err, recs)
		}
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.check(t)
	})
}

func TestCloseTimesOut(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.DrainTimeout = 3 * time.Second })
		deploy(t, n, hello(nil))
		l := acquire(t, n, AcquireOptions{})
		began := time.Now()
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if time.Since(began) != 3*time.Second || !errors.Is(l.Err(), ErrDraining) {
			t.Errorf("after %v: %v", time.Since(began), l.Err())
		}
		w.check(t)
		l.Release(api.Invocation{})
	})
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		w.say = []string{"hello"}
		deploy(t, n, hello(nil))
		l := acquire(t, n, AcquireOptions{})
		over := make(chan error)
		go func() { over <- n.Remove(t.Context(), "hello") }()
		time.Sleep(time.Second)
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); !errors.Is(err, ErrNoFunction) {
			t.Errorf("a request to a removed function: %v", err)
		}
		if got := get(t, l); got != l.Instance() {
			t.Errorf("the request in flight: %q", got)
		}
		l.Release(api.Invocation{})
		if err := <-over; err != nil {
			t.Error(err)
		}
		for _, sub := range []string{"logs", "snapshots"} {
			if e, _ := os.ReadDir(filepath.Join(w.dir, sub)); len(e) != 0 {
				t.Errorf("left in %s: %v", sub, e)
			}
		}
		if err := n.Remove(t.Context(), "hello"); !errors.Is(err, ErrNoFunction) {
			t.Errorf("removed twice: %v", err)
		}
		deploy(t, n, hello(nil)) // and it can come back
	})
}

func TestDeployIsCancelled(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Deploy(ctx, hello(nil), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's", err)
		}
		if len(n.FunctionNames()) != 0 {
			t.Error("it is deployed all the same")
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.bootTime, w.restoreTime = 0, 0
	n := w.open(t, func(c *Config) { c.MaxInstances = 6 })
	deploy(t, n, hello(func(f *api.Function) { f.MaxInstances, f.KeepAlive = 5, api.Duration(time.Millisecond) }))
	deploy(t, n, hello(func(f *api.Function) { f.Name = "other"; f.Concurrency = 3 }))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			name := []string{"hello", "other"}[i%2]
			for range 5 {
				l, err := n.Acquire(t.Context(), name, AcquireOptions{})
				if err != nil {
					if !errors.Is(err, ErrQueueFull) {
						t.Error(err)
					}
					continue
				}
				if i%3 == 0 {
					req := mustRequest(t)
					if resp, err := l.Transport(false).RoundTrip(req); err != nil {
						t.Error(err)
					} else if resp.Body.Close(); resp.StatusCode != http.StatusOK {
						t.Error(resp.Status)
					}
				}
				l.Release(api.Invocation{Status: 200})
			}
		})
	}
	wg.Wait()
}
