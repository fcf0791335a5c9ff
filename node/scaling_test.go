package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// underPolicy runs f on a node with a function under a scaling policy, in a bubble of
// its own time. Starts take half a second.
func underPolicy(t *testing.T, change func(*api.Function), f func(t *testing.T, n *Node, w *world, there func() int)) {
	w := newWorld(t)
	w.restoreTime = 500 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(fn *api.Function) { fn.KeepAlive = api.Duration(time.Minute); change(fn) }))
		f(t, n, w, func() int {
			synctest.Wait()
			return len(n.Instances("hello"))
		})
	})
}

// There are as many as there are to be, though nobody asks, and when one has died.
func TestMinInstances(t *testing.T) {
	underPolicy(t, func(f *api.Function) { f.MinInstances = 2 }, func(t *testing.T, n *Node, w *world, there func() int) {
		time.Sleep(time.Second)
		if k := there(); k != 2 {
			t.Fatalf("%d instances a second after the deployment, want 2", k)
		}
		for range 3 {
			must(t, send(t, acquire(t, n, AcquireOptions{}), "/", time.Hour, ""))
		}
		time.Sleep(time.Hour)
		if k := there(); k != 2 {
			t.Errorf("%d instances after an hour, want 2", k)
		}
		l := acquire(t, n, AcquireOptions{})
		l.Release(api.Invocation{Failure: api.FailureFunction})
		time.Sleep(2*reasonTime + time.Second)
		if k := there(); k != 2 {
			t.Errorf("%d instances after one ended, want 2", k)
		}
		for _, inst := range n.Instances("hello") {
			if inst.ID == l.Instance() {
				t.Errorf("%s is still there", inst.ID)
			}
		}
	})
}

// Each request of a second comes 20 minutes and a half after the last. From the second on
// the instance ends at once, and one is there again before the next.
func TestHybridStartsAheadLive(t *testing.T) {
	underPolicy(t, func(f *api.Function) { f.Scaling = "hybrid" }, func(t *testing.T, n *Node, w *world, there func() int) {
		w.set(func() { w.serviceTime = time.Second })
		for i := range 5 {
			l := acquire(t, n, AcquireOptions{})
			if kind := l.Start(); i > 1 && kind != api.StartWarm {
				t.Errorf("request %d: %s", i, kind)
			}
			must(t, send(t, l, "/", time.Hour, ""))
			time.Sleep(time.Minute)
			if k := there(); i > 0 && k != 0 {
				t.Errorf("%d instances a minute after request %d, want none", k, i)
			}
			time.Sleep(19*time.Minute + 30*time.Second)
		}
	})
}

// Three requests of ten seconds at once are more than 70% of three instances: a fourth is
// there after some seconds. A minute after them all are gone.
func TestKPALive(t *testing.T) {
	underPolicy(t, func(f *api.Function) { f.Scaling = "kpa" }, func(t *testing.T, n *Node, w *world, there func() int) {
		w.set(func() { w.serviceTime = 30 * time.Second })
		done := make(chan error)
		for range 3 {
			go func() {
				l, err := n.Acquire(context.Background(), "hello", AcquireOptions{})
				if err == nil {
					err = send(t, l, "/", time.Hour, "")
				}
				done <- err
			}()
		}
		time.Sleep(20 * time.Second)
		if k := there(); k < 4 {
			t.Errorf("%d instances for three requests, want 3/0.7", k)
		}
		for range 3 {
			must(t, <-done)
		}
		time.Sleep(2*time.Minute + 30*time.Second)
		if k := there(); k != 0 {
			t.Errorf("%d instances long after the last request", k)
		}
	})
}

// Four requests at once fit into an instance whose target is two: others get the third, and
// each instance has no more than it is to have; back to back they go to the same.
func TestTargetUtilization(t *testing.T) {
	underPolicy(t, func(f *api.Function) { f.Concurrency, f.TargetUtilization = 4, 0.5 }, func(t *testing.T, n *Node, w *world, there func() int) {
		var leases []Lease
		on := map[string]int{}
		for range 4 {
			l := acquire(t, n, AcquireOptions{})
			leases = append(leases, l)
			on[l.Instance()]++
			time.Sleep(time.Second) // so long that another is there
		}
		if k := there(); k != 2 || len(on) != 2 {
			t.Errorf("%d instances for four requests, which went to %v; want two to each of two", k, on)
		}
		for i := range 4 { // beyond the target, but no more than there is room for
			l := acquire(t, n, AcquireOptions{})
			leases = append(leases, l)
			if on[l.Instance()]++; i > 0 {
				time.Sleep(time.Second)
			}
		}
		for inst, k := range on {
			if k > 4 {
				t.Errorf("%s has %d requests", inst, k)
			}
		}
		for _, l := range leases {
			must(t, send(t, l, "/", time.Hour, ""))
		}
		time.Sleep(2 * time.Minute)
		if k := there(); k != 0 {
			t.Errorf("%d instances are left", k)
		}
	})
}

func TestScalingIsChecked(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	defer n.Close(context.Background())
	_, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Scaling = "kpa:windw=1s" }), nil)
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown parameter: %v", err)
	}
}
