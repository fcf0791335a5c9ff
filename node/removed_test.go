package node

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/network"
)

// A request that waits while its function is removed is told so: the function
// was there when it came.
func TestRemovedWhileWaiting(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = 1 }))
		l := acquire(t, n, AcquireOptions{})
		got := make(chan error, 2)
		for _, o := range []AcquireOptions{{}, {Start: api.StartRestore}} {
			go func() {
				_, err := n.Acquire(t.Context(), "hello", o)
				got <- err
			}()
		}
		synctest.Wait()
		over := make(chan error)
		go func() { over <- n.Remove(t.Context(), "hello") }()
		for range 2 {
			if err := <-got; !errors.Is(err, ErrRemoved) || errors.Is(err, ErrNoFunction) {
				t.Errorf("a request that waited: %v", err)
			}
		}
		l.Release(api.Invocation{Status: 200})
		must(t, <-over)
	})
}

// Neither a start that fails nor an end leaves an empty run directory.
func TestNoRunDirectoryIsLeft(t *testing.T) {
	w := newWorld(t)
	deps := w.deps()
	deps.OpenNetwork = func(context.Context) (network.Pool, error) { return nil, errors.New("no tap devices") }
	cfg := Config{DataDir: w.dir, RunDir: t.TempDir(), UIDBase: -1}
	if _, err := Open(t.Context(), cfg, deps); err == nil {
		t.Fatal("it starts")
	}
	if left, err := os.ReadDir(cfg.RunDir); err != nil || len(left) > 0 {
		t.Errorf("a failed start left %v, %v", left, err)
	}
	n, err := Open(t.Context(), cfg, w.deps())
	must(t, err)
	must(t, n.Close(t.Context()))
	if left, err := os.ReadDir(cfg.RunDir); err != nil || len(left) > 0 {
		t.Errorf("an end left %v, %v", left, err)
	}
}
