package network

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How long things take: go test -run '^$' -bench . ./network

func BenchmarkBuildAndDestroy(b *testing.B) {
	for _, egress := range []string{egressNone, egressNAT} {
		b.Run(egress, func(b *testing.B) {
			s := open(b, quiet(b, "skepb-build"))
			var built, destroyed stopwatch
			for b.Loop() {
				built.start()
				p, err := s.create(egress)
				if err != nil {
					b.Fatal(err)
				}
				built.stop()
				destroyed.start()
				s.discard(p)
				destroyed.stop()
			}
			built.report(b, "build-µs/op")
			destroyed.report(b, "destroy-µs/op")
		})
	}
}

func BenchmarkClean(b *testing.B) {
	s := open(b, quiet(b, "skepb-clean"))
	p, err := s.create(egressNone)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.clean(p); err != nil {
			b.Fatal(err)
		}
	}
	s.discard(p)
}

func BenchmarkTakeReady(b *testing.B) {
	opts := quiet(b, "skepb-take")
	opts.Keep = 1
	s := open(b, opts)
	p, err := s.create(egressNone)
	if err != nil {
		b.Fatal(err)
	}
	s.shelve(p)
	for b.Loop() {
		slot := take(b, s, egressNone)
		s.shelve(slot.lease.space) // as Give does, without the cleaning
		_ = s.drop()
	}
}

func BenchmarkDial(b *testing.B) {
	s := open(b, quiet(b, "skepb-dial"))
	slot := take(b, s, egressNone)
	defer s.Give(slot)
	g := bootGuest(b, s, slot)
	defer g.end()
	l := listen(b, s, g.ns, ":8080", "")
	defer l.Close()
	for b.Loop() {
		c, err := slot.Dial(b.Context(), 8080)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// The part of Dial that the namespace costs: a socket in it, against one here.
func BenchmarkSocket(b *testing.B) {
	s := open(b, quiet(b, "skepb-socket"))
	slot := take(b, s, egressNone)
	defer s.Give(slot)
	b.Run("inside", func(b *testing.B) {
		for b.Loop() {
			if err := s.in(slot.lease.space.ns, openAndClose); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("here", func(b *testing.B) {
		for b.Loop() {
			if err := openAndClose(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func quiet(b *testing.B, prefix string) Options {
	opts := testOptions(b, prefix)
	opts.Logger = nil
	return opts
}

// stopwatch adds up the parts of a loop.
type stopwatch struct {
	began time.Time
	total time.Duration
	n     int
}

func (w *stopwatch) start() { w.began = time.Now() }
func (w *stopwatch) stop()  { w.total += time.Since(w.began); w.n++ }
func (w *stopwatch) report(b *testing.B, unit string) {
	b.ReportMetric(float64(w.total.Microseconds())/float64(w.n), unit)
}

func openAndClose() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Twenty cold starts at once, with nothing made ahead: the time until the last
// has its slot.
func BenchmarkTakeBurst(b *testing.B) {
	for _, egress := range []string{egressNone, egressNAT} {
		b.Run(egress, func(b *testing.B) {
			opts := quiet(b, "skepb-burst")
			opts.Keep = 1
			s := open(b, opts)
			var took stopwatch
			for b.Loop() {
				slots := make([]*Slot, 20)
				var wg sync.WaitGroup
				took.start()
				for i := range slots {
					wg.Go(func() { slots[i] = take(b, s, egress) })
				}
				wg.Wait()
				took.stop()
				for _, slot := range slots {
					s.end(slot)
				}
			}
			took.report(b, "burst-µs/op")
		})
	}
}

// end gives a slot back and waits until it is destroyed.
func (s *Slots) end(slot *Slot) {
	if slot.lease.end() {
		s.discard(slot.lease.space)
		s.letGo()
	}
}
