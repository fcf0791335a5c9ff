package remote_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
)

// read copies what is there by now.
func (b *buffer) read(off, n int64) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b[off : off+n])
}

// arriving pushes a snapshot, and begins to have its memory from a store that has not seen it.
func arriving(t testing.TB, b *remotetest.Memory, data []byte, wait time.Duration) (*remote.Arriving, *buffer, *remote.Store) {
	t.Helper()
	push(t, open(t, b), snap(t, "a", data))
	s := open(t, b)
	e, err := s.Find(t.Context(), "hello", "a")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Load(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	to := &buffer{b: make([]byte, len(data))}
	a, err := s.Arrive(m, "memory", to, wait)
	if err != nil {
		t.Fatal(err)
	}
	return a, to, s
}

// TestArriving reads a file everywhere while it is being fetched, with a store that fails now and then.
func TestArriving(t *testing.T) {
	var asked atomic.Int64
	b := &remotetest.Memory{}
	all := append(seeds(1, 300), 0, 0, 0, 5, 5, 1, 0)
	data := append(content(all...), 7, 7, 7)
	a, to, _ := arriving(t, b, data, time.Minute)
	b.Fail = func(string, string) error {
		if asked.Add(1)%5 == 0 {
			return remote.ErrUnavailable
		}
		return nil
	}
	var g errgroup.Group
	for i := range 8 {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 100 {
				off := r.Int64N(int64(len(data)))
				n := 1 + r.Int64N(min(3*block, int64(len(data))-off))
				if err := a.Bring(t.Context(), off, n); err != nil {
					return err
				}
				if !a.Here(off, n) || !bytes.Equal(to.read(off, n), data[off:off+n]) {
					return errors.New("what was brought is not here")
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		for {
			if err := a.Fill(t.Context(), nil); !errors.Is(err, remote.ErrUnavailable) {
				return err
			}
		}
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if p := a.Progress(); !bytes.Equal(to.b, data) || p.Done != p.Total || p.Total != 303*block+3 || p.Waits == 0 {
		t.Errorf("it is here to %+v", p)
	}
	next := int64(0)
	for _, e := range a.Data() {
		if e.Offset < next || !bytes.Equal(data[next:e.Offset], make([]byte, e.Offset-next)) {
			t.Errorf("data from %d on, after %d", e.Offset, next)
		}
		next = e.Offset + e.Length
	}
	if next != int64(len(data)) {
		t.Errorf("data ends at %d of %d", next, len(data))
	}
}

// TestArrivingBringsLittle has one page bring itself and what follows, and no more.
func TestArrivingBringsLittle(t *testing.T) {
	b := &remotetest.Memory{}
	data := content(seeds(1, 200)...)
	a, _, s := arriving(t, b, data, time.Minute)
	before := s.Stats().Fetched
	if err := a.Bring(t.Context(), 50*block+17, 1); err != nil {
		t.Fatal(err)
	}
	if !a.Here(50*block, 8*block) || a.Here(49*block, 1) || a.Here(82*block, 1) {
		t.Error("it has not brought what follows, or more")
	}
	if got := s.Stats().Fetched - before; got == 0 || got > 33*block || got != a.Progress().Fetched {
		t.Errorf("fetched %d bytes for one page, counted %d", got, a.Progress().Fetched)
	}
	if a.Bring(t.Context(), 51*block, block) != nil || a.Progress().Waits != 1 {
		t.Errorf("waited for what is here: %+v", a.Progress())
	}
	if err := a.Fill(t.Context(), nil); err != nil || a.Progress().Done != int64(len(data)) {
		t.Errorf("%v, %+v", err, a.Progress())
	}
	if _, err := s.Arrive(&remote.Manifest{}, "memory", nil, 0); !errors.Is(err, remote.ErrFormat) {
		t.Error(err)
	}
}

// TestWaitsComeFirst has somebody who waits for a part of one file be served before the rest of any is fetched.
func TestWaitsComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &remotetest.Memory{}
		memory, _, s := arriving(t, b, content(seeds(1, 300)...), time.Minute)
		sn := snap(t, "b", content(seeds(1000, 300)...))
		push(t, s, sn)
		e, err := s.Find(t.Context(), "hello", "b")
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Load(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		disk, err := s.Arrive(m, "memory", &buffer{b: make([]byte, 300*block)}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int64
		answer := make(chan struct{})
		b.Fail = func(string, string) error {
			asked.Add(1)
			<-answer
			return nil
		}
		brought, filled := make(chan error, 1), make(chan error, 1)
		go func() { brought <- disk.Bring(t.Context(), 0, 1) }()
		synctest.Wait()
		go func() { filled <- memory.Fill(t.Context(), nil) }()
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("the store was asked %d times while somebody waited", n)
		}
		answer <- struct{}{}
		if err := <-brought; err != nil {
			t.Error(err)
		}
		close(answer)
		if err := <-filled; err != nil {
			t.Error(err)
		}
		if p := memory.Progress(); p.Done != p.Total || p.Total != 300*block {
			t.Errorf("it is here to %+v", p)
		}
		// Who is told to end does not wait for who waits.
		b.Fail = func(string, string) error { time.Sleep(time.Hour); return nil }
		leaving, leave := context.WithCancel(t.Context())
		go func() { brought <- disk.Bring(leaving, 290*block, 1) }()
		synctest.Wait()
		ending, end := context.WithCancelCause(t.Context())
		go func() { filled <- disk.Fill(ending, nil) }()
		synctest.Wait()
		told := errors.New("told to end")
		end(told)
		if err := <-filled; !errors.Is(err, told) && !errors.Is(err, context.Canceled) {
			t.Errorf("filled: %v", err)
		}
		leave()
		<-brought
	})
}

// TestArrivingFromDeadStore has who waits be told within the bound, and not before: the store may come back.
func TestArrivingFromDeadStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &remotetest.Memory{}
		data := content(seeds(1, 20)...)
		a, to, s := arriving(t, b, data, 10*time.Second)
		var dead atomic.Bool
		b.Fail = func(string, string) error {
			if dead.Load() {
				return remote.ErrUnavailable
			}
			return nil
		}
		dead.Store(true)
		if err := a.Fill(t.Context(), nil); !errors.Is(err, remote.ErrUnavailable) {
			t.Errorf("filled from a dead store: %v", err)
		}
		began := time.Now()
		err := a.Bring(t.Context(), 0, block)
		if took := time.Since(began); !errors.Is(err, remote.ErrUnavailable) || took != 10*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		t.Log(err)
		time.AfterFunc(5*time.Second, func() { dead.Store(false) })
		if err := a.Bring(t.Context(), 0, block); err != nil || !bytes.Equal(to.read(0, block), data[:block]) {
			t.Errorf("the store came back: %v", err)
		}
		if p := a.Progress(); p.Waits != 2 || p.Waited < 15*time.Second || s.Stats().Failed == 0 || s.Stats().Waited != p.Waited {
			t.Errorf("%+v, %+v", p, s.Stats())
		}
		// One who leaves takes nothing from others.
		b.Fail = func(string, string) error { time.Sleep(time.Second); return nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		left := make(chan error)
		go func() { left <- a.Bring(ctx, 15*block, block) }()
		synctest.Wait()
		if err := a.Bring(t.Context(), 15*block, block); err != nil {
			t.Error(err)
		}
		<-left
	})
}

// TestArrivingSpoilt has what is damaged, cut short or gone reach nobody, and end what waits for it.
func TestArrivingSpoilt(t *testing.T) {
	data := content(seeds(1, 40)...)
	for name, spoil := range map[string]func(b *remotetest.Memory){
		"damaged": func(b *remotetest.Memory) {
			b.Spoil = func(_ string, p []byte) []byte {
				for i := range p {
					p[i] ^= 0x5a
				}
				return p
			}
		},
		"cut short": func(b *remotetest.Memory) { b.Spoil = func(_ string, p []byte) []byte { return p[:20] } },
		"gone": func(b *remotetest.Memory) {
			for _, k := range b.Keys("team/skep1/packs/") {
				_ = b.Delete(context.Background(), k)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := &remotetest.Memory{}
			a, to, _ := arriving(t, b, data, time.Minute)
			spoil(b)
			for _, err := range []error{a.Bring(t.Context(), 3*block, block), a.Fill(t.Context(), nil), a.Bring(t.Context(), 30*block, 1)} {
				if !errors.Is(err, remote.ErrFormat) && !errors.Is(err, remote.ErrNotThere) {
					t.Errorf("error %v", err)
				}
			}
			if a.Here(0, 1) || !bytes.Equal(to.b, make([]byte, len(data))) {
				t.Error("something of it was written")
			}
		})
	}
}
