package feed_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/internal/feed"
)

func TestReadersGetEverythingInOrder(t *testing.T) {
	const items, readers = 10_000, 4
	f := feed.New[int](items)
	var wg sync.WaitGroup
	for range readers {
		r, ok := f.After(0)
		if !ok {
			t.Fatal("the beginning is forgotten")
		}
		wg.Go(func() {
			for want := range items {
				if got, err := r.Next(t.Context()); err != nil || got != want {
					t.Errorf("item %d is %d, %v", want, got, err)
					return
				}
			}
		})
	}
	for i := range items {
		if n := f.Publish(i); n != uint64(i)+1 {
			t.Fatalf("item %d has number %d", i, n)
		}
	}
	wg.Wait()
}

func TestSlowReaderIsTold(t *testing.T) {
	f := feed.New[int](3)
	r, _ := f.After(0)
	for i := range 4 {
		f.Publish(i)
	}
	if _, err := r.Next(t.Context()); !errors.Is(err, feed.ErrLost) {
		t.Fatalf("error %v", err)
	}
	if r.Last() != 4 {
		t.Errorf("after item %d", r.Last())
	}
	f.Publish(9)
	if got, err := r.Next(t.Context()); err != nil || got != 9 {
		t.Errorf("then %d, %v", got, err)
	}
}

func TestGoesOnWhereItWas(t *testing.T) {
	f := feed.New[int](3)
	for i := range 10 {
		f.Publish(i)
	}
	for _, c := range []struct {
		after uint64
		ok    bool
		last  uint64
	}{{0, false, 10}, {6, false, 10}, {7, true, 7}, {10, true, 10}, {11, false, 10}, {1 << 63, false, 10}, {^uint64(0), false, 10}} {
		if r, ok := f.After(c.after); ok != c.ok || r.Last() != c.last {
			t.Errorf("after %d: %v, at %d", c.after, ok, r.Last())
		}
	}
	r, _ := f.After(7)
	if got, err := r.Next(t.Context()); err != nil || got != 7 {
		t.Errorf("item 8 is %d, %v", got, err)
	}
}

func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New[string](2)
		r, _ := f.After(0)
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { _, err := r.Next(ctx); ended <- err }()
		synctest.Wait()
		cancel(why)
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("error %v", err)
		}
		got := make(chan string, 1)
		go func() { s, _ := r.Next(t.Context()); got <- s }()
		synctest.Wait()
		f.Publish("late")
		if s := <-got; s != "late" {
			t.Errorf("got %q", s)
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	f := feed.New[[16]uint64](4096)
	b.ReportAllocs()
	for b.Loop() {
		f.Publish([16]uint64{})
	}
}
