package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/api"
)

// A node that drains is healthy and not ready, and tells the requests under way.
func TestReadyUntilItDrains(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		deploy(t, n, hello(nil))
		l := acquire(t, n, AcquireOptions{})
		if err := n.Ready(t.Context()); err != nil {
			t.Errorf("it serves, but: %v", err)
		}
		select {
		case <-l.Ending():
			t.Error("the instance is said to end")
		default:
		}
		over := make(chan error)
		go func() { over <- n.Close(context.Background()) }()
		<-l.Ending()
		if err := n.Ready(t.Context()); !errors.Is(err, ErrDraining) {
			t.Errorf("it drains: %v", err)
		}
		if err := n.Healthy(t.Context()); err != nil {
			t.Errorf("it drains, and is said to be broken: %v", err)
		}
		l.Release(api.Invocation{Status: 200})
		if err := <-over; err != nil {
			t.Error(err)
		}
		if err := n.Healthy(t.Context()); err == nil {
			t.Error("a closed node is said to be healthy")
		}
	})
}
