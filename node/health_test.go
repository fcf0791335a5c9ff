package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// A node whose lock is held for ever, or that has lost its VMM, says so.
func TestStuckOrWithoutVMM(t *testing.T) {
	w := newWorld(t)
	w.bootTime = 0
	n := w.open(t, nil)
	deploy(t, n, hello(nil))
	p := n.pool("hello")
	p.mu.Lock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := n.Healthy(ctx); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("its lock is held: %v", err)
	}
	p.mu.Unlock()
	if err := n.Healthy(t.Context()); err != nil {
		t.Errorf("it is free again: %v", err)
	}
	w.set(func() { w.infoErr = errors.New("no such binary") })
	if err := n.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no such binary") {
		t.Errorf("without a VMM: %v", err)
	}
	if err := n.Healthy(t.Context()); err != nil {
		t.Errorf("a new start would not help: %v", err)
	}
}
