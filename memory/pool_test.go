package memory

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
)

// takeAll takes as many buffers as a reader may have.
func takeAll(t *testing.T, p *pool, of *share) (bufs []*buffer) {
	t.Helper()
	for {
		b, err := p.try(of)
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return bufs
		}
		bufs = append(bufs, b)
	}
}

// However many readers want all of the pool, the next gets some of it at once.
func TestPoolIsShared(t *testing.T) {
	p := newPool(16 * bufferSize)
	defer p.shut()
	var shares [5]share
	var all []*buffer
	for i, want := range []int{8, 4, 2, 1, 1} {
		got := takeAll(t, p, &shares[i])
		if len(got) != want {
			t.Errorf("reader %d got %d buffers beside those before it, want %d", i, len(got), want)
		}
		all = append(all, got...)
	}
	for _, b := range all {
		b.unref()
	}
	if p.used != 0 || shares != [5]share{} {
		t.Errorf("%d in use, %v", p.used, shares)
	}
	if n := len(takeAll(t, p, &shares[0])); n != 8 {
		t.Errorf("alone it gets %d", n)
	}
}

// What is given back goes to those who wait, first come first served, but not to
// one who has more than is left for others; who gives up waits no longer.
func TestPoolQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(4 * bufferSize)
		defer p.shut()
		var large, first, second, third share
		have := append(takeAll(t, p, &large), append(takeAll(t, p, &first), takeAll(t, p, &second)...)...)
		if len(have) != 4 || p.used != 4 {
			t.Fatalf("%d taken", len(have))
		}
		order := make(chan string, 8)
		wait := func(ctx context.Context, name string, of *share) {
			go func() {
				b, err := p.get(ctx, of)
				switch {
				case errors.Is(err, context.Canceled):
					order <- name + " gave up"
				case err != nil:
					t.Error(err)
				default:
					order <- name
					b.unref()
				}
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(t.Context(), "large", &large)
		wait(ctx, "impatient", &third)
		wait(t.Context(), "third", &third)
		cancel()
		synctest.Wait()
		have[3].unref() // one is free: less than large has
		synctest.Wait()
		if len(order) != 2 {
			t.Fatalf("%d have come, want the two that wait for their first", len(order))
		}
		have[0].unref()
		synctest.Wait()
		for _, want := range []string{"impatient gave up", "third", "large"} {
			if got := <-order; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		have[1].unref()
		have[2].unref()
		if p.used != 0 || len(p.waiting) != 0 {
			t.Errorf("%d in use, %d wait", p.used, len(p.waiting))
		}
	})
}

// Who reads more than a turn's worth lets those who wait have theirs in between, in
// their order; who is alone reads on.
func TestTurnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := semaphore.NewWeighted(1)
		large, order := turnAtDisk{of: turns}, make(chan string, 8)
		read := func(mib int64) {
			for range mib {
				if err := large.spend(t.Context(), bufferSize); err != nil {
					t.Error(err)
				}
			}
		}
		if err := large.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		read(3*turnBytes/bufferSize + 1) // nobody waits
		for _, name := range []string{"first", "second"} {
			go func() {
				small := turnAtDisk{of: turns}
				if err := small.take(t.Context()); err != nil {
					t.Error(err)
				}
				order <- name
				small.give()
			}()
			synctest.Wait()
		}
		if read(turnBytes/bufferSize - 1); len(order) != 0 {
			t.Error("a turn ended early")
		}
		read(2)
		if len(order) != 2 || <-order != "first" {
			t.Errorf("%d had their turn", len(order))
		}
		large.give()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		other := turnAtDisk{of: turns}
		if err := other.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := large.take(ctx); !errors.Is(err, context.Canceled) || large.have {
			t.Errorf("%v, have %v", err, large.have)
		}
		large.give() // nothing
		other.give()
		if !turns.TryAcquire(1) || turns.TryAcquire(1) {
			t.Error("turns are lost or made")
		}
	})
}

// Some time after the last use a few buffers stay allocated; in a process with a
// single guest none does.
func TestIdleBuffersAreGivenBack(t *testing.T) {
	for name, tt := range map[string]struct {
		o    Options
		stay int
	}{"a daemon's": {Options{}, keepAlways}, "a lone guest's": {Options{Lone: true}, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := tt.o
				o.BufferBytes = 64 * bufferSize
				table := New(o)
				defer table.Close()
				p, of := table.pool, &share{}
				for _, b := range takeAll(t, p, of) {
					b.unref()
				}
				time.Sleep(idleTime + time.Second)
				synctest.Wait()
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.idle) != tt.stay {
					t.Errorf("%d buffers stay, want %d", len(p.idle), tt.stay)
				}
			})
		})
	}
}
