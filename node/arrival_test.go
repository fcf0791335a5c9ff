package node

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
)

// lazily has one node push a snapshot with content in its memory, and another, whose policy needs no file,
// be about to start from it. What is read of packs after the first so many reads is judged by late.
type lazily struct {
	content []byte
	other   *world
	n       *Node
	id      string
	b       *remotetest.Memory
	free    atomic.Int64 // reads of packs that go through
	late    func() error // what becomes of the others
}

func newLazily(t *testing.T, maker, other *world) *lazily {
	t.Helper()
	l := &lazily{content: make([]byte, 3<<20), other: other, b: &remotetest.Memory{}}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range l.content {
		l.content[i] = byte(r.Uint32())
	}
	maker.content = l.content
	a := maker.join(t, l.b, false)
	deploy(t, a, hello(nil))
	l.id = snapshotIDs(t, a)[0]
	if _, err := a.PushSnapshot(t.Context(), l.id, nil); err != nil {
		t.Fatal(err)
	}
	l.free.Store(1) // the state is one
	l.b.Fail = func(op, key string) error {
		if op == "read" && strings.Contains(key, "/packs/") && l.free.Add(-1) < 0 {
			return l.late()
		}
		return nil
	}
	l.n = other.join(t, l.b, false)
	return l
}

func lazyHello(f *api.Function) { f.MemoryPolicy = "stream" }

// page reads a page as the guest that started last would.
func (l *lazily) page(ctx context.Context, i uint32) error {
	b := make([]byte, pageSize)
	if now, err := l.other.pages.ReadNow(b, i); err != nil || now {
		return errors.Join(err, errors.New("it is here already"))
	}
	if err := l.other.pages.Read(ctx, b, i); err != nil {
		return err
	}
	if !bytes.Equal(b, l.content[i*pageSize:(i+1)*pageSize]) {
		return errors.New("its content is wrong")
	}
	return nil
}

// TestStartsBeforeAllHasCome has a function be deployed and serve while nothing of its memory is here but
// what is asked for.
func TestStartsBeforeAllHasCome(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLazily(t, maker, other)
		gate := make(chan struct{})
		l.late = func() error { <-gate; return nil }
		deploy(t, l.n, hello(lazyHello))
		lease := acquire(t, l.n, AcquireOptions{})
		get(t, lease)
		if lease.Start() != api.StartRestore || other.boots != 0 || other.pages == nil {
			t.Errorf("a %s, %d boots", lease.Start(), other.boots)
		}
		list := inStore(t, l.n)
		if len(snapshotIDs(t, l.n)) != 0 || len(list) != 1 || list[0].Here || list[0].Arriving == nil || list[0].Arriving.Done != 0 || list[0].Arriving.Total != 3<<20 {
			t.Errorf("here are %v, in the store %+v", snapshotIDs(t, l.n), list)
		}
		if e, err := other.pages.Data(); err != nil || len(e) != 1 || e[0].First != 0 || e[0].Pages != 768 {
			t.Errorf("data: %v, %v", e, err)
		}
		read := make(chan error)
		go func() { read <- l.page(t.Context(), 400) }()
		synctest.Wait()
		close(gate)
		if err := <-read; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if ids := snapshotIDs(t, l.n); len(ids) != 1 || ids[0] != l.id || l.n.arrivals.get(l.id) != nil {
			t.Errorf("here are %v", ids)
		}
		if err := l.n.VerifySnapshot(t.Context(), l.id); err != nil {
			t.Error(err)
		}
		lease.Release(api.Invocation{})
		alone := acquire(t, l.n, AcquireOptions{Start: api.StartRestore})
		get(t, alone)
		if other.pages != nil {
			t.Error("what is whole was not started from as a file")
		}
		alone.Release(api.Invocation{})
	})
}

// TestStoreDiesWhileSnapshotArrives has a guest's page not come in time, nothing start from what is not whole while
// the store is dead, and all come when it is back.
func TestStoreDiesWhileSnapshotArrives(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLazily(t, maker, other)
		var back atomic.Bool
		dead := make(chan struct{})
		l.late = func() error {
			if <-dead; back.Load() {
				return nil
			}
			return remote.ErrUnavailable
		}
		deploy(t, l.n, hello(lazyHello))
		close(dead)
		synctest.Wait()
		began := time.Now()
		lease := acquire(t, l.n, AcquireOptions{Start: api.StartBoot})
		lease.Release(api.Invocation{})
		a := l.n.arrivals.get(l.id)
		if a == nil {
			t.Fatal("it is not arriving")
		}
		s, err := a.snap.Use()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Release()
		o := origin{s, a}
		pages, err := o.source().Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := pages.Read(t.Context(), make([]byte, pageSize), 3); !errors.Is(err, ErrStoreUnavailable) || time.Since(began) < storeWait {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := pages.Close(); err != nil {
			t.Error(err)
		}
		lease = acquire(t, l.n, AcquireOptions{})
		if lease.Start() != api.StartBoot {
			t.Errorf("a %s", lease.Start())
		}
		lease.Release(api.Invocation{})
		if _, err := l.n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartRestore}); !errors.Is(err, ErrStoreUnavailable) {
			t.Errorf("a restore: %v", err)
		}
		back.Store(true)
		time.Sleep(2 * arrivalMost)
		synctest.Wait()
		if _, err := l.n.snaps.Manifest(l.id); err != nil {
			t.Error(err)
		}
	})
}

// TestSpoiltWhileArriving has memory be damaged or gone in the store when instances start from it already: nobody
// gets it, and it is not published.
func TestSpoiltWhileArriving(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLazily(t, maker, other)
		gate := make(chan struct{})
		l.late = func() error { <-gate; return remote.ErrFormat }
		deploy(t, l.n, hello(lazyHello))
		lease := acquire(t, l.n, AcquireOptions{})
		close(gate)
		if err := l.page(t.Context(), 5); !errors.Is(err, remote.ErrFormat) {
			t.Errorf("a page: %v", err)
		}
		synctest.Wait()
		if len(snapshotIDs(t, l.n)) != 0 || l.n.arrivals.get(l.id) != nil {
			t.Errorf("here are %v", snapshotIDs(t, l.n))
		}
		get(t, lease) // which the guest of the test does not mind
		lease.Release(api.Invocation{})
		alone := acquire(t, l.n, AcquireOptions{Start: api.StartBoot})
		alone.Release(api.Invocation{})
	})
}

// TestSlowStore has what a start needs take longer than is worth waiting for: one boots instead, and one that may
// not has it when it comes.
func TestSlowStore(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLazily(t, maker, other)
		l.free.Store(0)
		l.late = func() error { time.Sleep(2 * remoteWait); return nil }
		deploy(t, l.n, hello(lazyHello))
		for _, tc := range []struct{ asked, is api.StartKind }{{"", api.StartBoot}, {api.StartRestore, api.StartRestore}} {
			time.Sleep(time.Hour) // until none is left
			for _, id := range snapshotIDs(t, l.n) {
				if err := l.n.RemoveSnapshot(id); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			lease := acquire(t, l.n, AcquireOptions{Start: tc.asked})
			took := time.Since(began)
			if lease.Start() != tc.is || took < remoteWait {
				t.Errorf("asked for a %q start: a %s within %v", tc.asked, lease.Start(), took)
			}
			lease.Release(api.Invocation{})
		}
	})
}

// TestArrivalIsGivenUp has all that ends a snapshot end one that is arriving.
func TestArrivalIsGivenUp(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, l *lazily) error{
		"the node closes":     func(t *testing.T, l *lazily) error { return nil },
		"it is removed":       func(t *testing.T, l *lazily) error { return l.n.RemoveSnapshot(l.id) },
		"its function is":     func(t *testing.T, l *lazily) error { return l.n.Remove(t.Context(), "hello") },
		"a pull waits for it": func(t *testing.T, l *lazily) error { return pullInVain(t, l) },
		"a rollback may want it": func(t *testing.T, l *lazily) error {
			return second(l.n.Deploy(t.Context(), hello(func(f *api.Function) { f.Env = map[string]string{"A": "2"} }), nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			maker, other := newWorld(t), newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				l := newLazily(t, maker, other)
				l.late = func() error { time.Sleep(time.Second); return remote.ErrUnavailable }
				deploy(t, l.n, hello(lazyHello))
				if l.n.arrivals.get(l.id) == nil {
					t.Fatal("it is not arriving")
				}
				if err := end(t, l); err != nil {
					t.Error(err)
				}
				kept := name != "it is removed" && name != "its function is"
				if there := l.n.arrivals.get(l.id) != nil; there != kept {
					t.Errorf("it is arriving: %v", there)
				}
			})
		})
	}
}

func pullInVain(t *testing.T, l *lazily) error {
	if _, err := l.n.PullSnapshot(t.Context(), "hello", l.id, nil); !errors.Is(err, ErrStoreUnavailable) {
		return errors.Join(errors.New("it was pulled"), err)
	}
	return nil
}
