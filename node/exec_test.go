package node

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestVisits keeps an instance while somebody is in it, whatever its keep-alive,
// and lets it end for what is not to wait for them.
func TestVisits(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.KeepAlive = api.Duration(time.Minute); f.Concurrency = 1 }))
		time.Sleep(2 * time.Minute)
		if _, err := n.Visit(t.Context(), "hello", ""); !errors.Is(err, ErrNotRunning) {
			t.Errorf("where nothing runs: %v", err)
		}
		if _, err := n.Visit(t.Context(), "none", ""); !errors.Is(err, ErrNoFunction) {
			t.Errorf("no such function: %v", err)
		}
		acquire(t, n, AcquireOptions{}).Release(api.Invocation{})
		v, err := n.Visit(t.Context(), "hello", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Visit(t.Context(), "", "i-0000000000000000"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("no such instance: %v", err)
		}
		byID, err := n.Visit(t.Context(), "", v.Instance())
		if err != nil || byID.Instance() != v.Instance() {
			t.Fatalf("by its id: %v", err)
		}
		byID.Close()
		go v.Write([]byte("x"))
		if _, err := io.ReadFull(v, make([]byte, 1)); err != nil {
			t.Errorf("through the visit: %v", err)
		}
		time.Sleep(time.Hour)
		l := acquire(t, n, AcquireOptions{}) // a visit takes no request's place
		if l.Instance() != v.Instance() {
			t.Errorf("the request went to %s, and not to %s, which is visited", l.Instance(), v.Instance())
		}
		l.Release(api.Invocation{})
		time.Sleep(time.Hour)
		if is := n.Instances("hello"); len(is) != 1 || is[0].State != api.InstanceIdle || v.Err() != nil {
			t.Errorf("an hour later: %+v, %v", is, v.Err())
		}
		v.Close()
		v.Close()
		time.Sleep(59 * time.Second)
		if len(n.Instances("hello")) != 1 {
			t.Error("its keep-alive did not begin anew")
		}
		time.Sleep(2 * time.Second)
		if is := n.Instances("hello"); len(is) != 0 {
			t.Errorf("it stays for ever: %+v", is)
		}

		// It waits for a visit when it is to end gently, and not when its function goes.
		l = acquire(t, n, AcquireOptions{})
		if v, err = n.Visit(t.Context(), "hello", l.Instance()); err != nil {
			t.Fatal(err)
		}
		l.Release(api.Invocation{Failure: api.FailureFunction})
		time.Sleep(time.Minute)
		if v.Err() != nil {
			t.Errorf("who looks into one that does not answer is put out: %v", v.Err())
		}
		if err := n.Remove(t.Context(), "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(v, make([]byte, 1)); err == nil {
			t.Error("the visit outlives its function")
		}
		if err := v.Err(); err == nil || !strings.Contains(err.Error(), "removed") {
			t.Errorf("why it ended: %v", err)
		}
		v.Close()
	})
}

// TestVisitedMakesNoSnapshot lets an instance answer as many invocations as its
// snapshot is due after: it makes none when somebody was in it.
func TestVisitedMakesNoSnapshot(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) {
			f.Snapshot = api.SnapshotRule{AfterInvocations: 2}
			f.KeepAlive = api.Duration(time.Minute)
		}))
		for i := range 4 {
			l := acquire(t, n, AcquireOptions{})
			if i == 0 {
				v, err := n.Visit(t.Context(), "hello", "")
				if err != nil {
					t.Fatal(err)
				}
				v.Close()
			}
			l.Release(api.Invocation{})
			synctest.Wait()
		}
		if s, err := n.Snapshots(t.Context(), "hello"); err != nil || len(s) != 0 {
			t.Errorf("snapshots of what was visited: %+v, %v", s, err)
		}
		time.Sleep(2 * time.Minute)
		for range 2 {
			acquire(t, n, AcquireOptions{}).Release(api.Invocation{})
		}
		time.Sleep(10 * time.Second)
		if s, err := n.Snapshots(t.Context(), "hello"); err != nil || len(s) != 1 {
			t.Errorf("snapshots of the next: %+v, %v", s, err)
		}
	})
}
