package memory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// miss is a read for a fault, of the page alone or of its cluster. What needs no
// waiting is read in place, and from a disk also the only fault of a guest that nothing else is to be
// done for: to have it read elsewhere costs it as much again. If that takes long another goroutine goes on
// with the loop. All else is read beside the loop. So one slow read stops those who wait for it, and
// nobody else.
type miss struct {
	page       uint32 // that was asked for first, and is installed first
	first, end uint32 // what is read
	buf        *[clusterPages * pageSize]byte
	err        error
	began      time.Time
	faults     []userfaultfd.Event // of those who wait for it

	// Of one that the loop reads itself:
	state atomic.Int32
	over  atomic.Bool // it has been read
}

// relief is after how long another goroutine takes over from a loop that reads.
const relief = time.Millisecond

// What becomes of a loop that reads a miss itself: another goroutine may take over all that
// it owns, from when it reads until it has gone on.
const (
	reads int32 = iota
	goesOn
	taken
)

// errTaken ends a goroutine whose loop another one goes on with. It owns nothing any more.
var errTaken = errors.New("the loop is another goroutine's")

// clusters are the buffers of misses. No instance keeps one.
var clusters = sync.Pool{New: func() any { return new([clusterPages * pageSize]byte) }}

// contents of n pages from one on.
func (m *miss) contents(page, n uint32) []byte {
	return m.buf[(page-m.first)*pageSize : (page-m.first+n)*pageSize]
}

func (m *miss) String() string {
	if m.end == m.first+1 {
		return fmt.Sprintf("page %d", m.first)
	}
	return fmt.Sprintf("pages %d to %d", m.first, m.end-1)
}

// serveMiss answers a fault from the snapshot's memory, or begins to.
func (s *server) serveMiss(ev userfaultfd.Event, page uint32) (again bool, err error) {
	if m := s.reading[page]; m != nil {
		m.faults = append(m.faults, ev)
		return false, nil
	}
	m := s.spare
	if s.spare = nil; m == nil {
		m = &miss{}
	}
	m.page, m.first, m.end, m.began, m.faults, m.err = page, page, page+1, time.Now(), m.faults[:0], nil
	if s.beside != nil && s.unplanned(page) && s.beside.second(page/clusterPages) {
		m.first -= page % clusterPages
		m.end = min(m.first+clusterPages, s.back.pages)
	}
	m.buf = clusters.Get().(*[clusterPages * pageSize]byte)
	now, err := s.back.from.ReadNow(m.contents(m.first, m.end-m.first), m.first)
	switch {
	case err != nil:
		clusters.Put(m.buf)
		return false, m.failed(err)
	case now:
		s.counter.bytesRead.Add(int64(m.end-m.first) * pageSize)
		again, err = s.installMiss(m, ev)
		clusters.Put(m.buf)
		s.spare = m
		return again, err
	}
	m.faults = append(m.faults, ev)
	if s.reading == nil {
		s.reading = make(map[uint32]*miss)
	}
	for p := m.first; p < m.end; p++ {
		if s.reading[p] == nil {
			s.reading[p] = m
		}
	}
	if _, local := s.back.from.(*filePages); local && len(s.faults) == 1 && len(s.came) == 0 && len(s.ready) == 0 {
		return s.readHere(m)
	}
	s.spawn(func() { s.read(m) })
	return false, nil
}

// readHere reads a miss whose fault is the only one at hand.
func (s *server) readHere(m *miss) (again bool, err error) {
	s.faults = s.faults[:0] // who takes over has the fault with m
	m.over.Store(false)
	m.state.Store(reads)
	s.here.Store(m)
	s.relief.Reset(relief)
	m.err = s.back.readWaiting(s.ctx, m.contents(m.first, m.end-m.first), m.first)
	m.over.Store(true)
	if m.err == nil {
		s.counter.bytesRead.Add(int64(m.end-m.first) * pageSize)
	}
	if !m.state.CompareAndSwap(reads, goesOn) {
		s.tell(func() { s.misses = append(s.misses, m) })
		return false, errTaken
	}
	s.relief.Stop() // one that goes off all the same relieves the next read early
	if m.err != nil {
		return false, m.failed(m.err)
	}
	if again, err = s.installMiss(m, m.faults[0]); again {
		s.faults = append(s.faults, m.faults[0])
	}
	s.forget(m)
	s.spare = m
	return again, err
}

// takeOver goes on with the loop of a goroutine that reads.
func (s *server) takeOver() {
	m := s.here.Load()
	if m == nil || !m.state.CompareAndSwap(reads, taken) {
		return
	}
	time.AfterFunc(s.limit, func() {
		if !m.over.Load() && s.ctx.Err() == nil {
			s.fail(m.failed(s.tooSlow()))
		}
	})
	s.spawn(s.loop) // the other is waited for, too: the memory is not closed while it reads
}

func (s *server) tooSlow() error { return fmt.Errorf("it took longer than %v", s.limit) }

// forget lets go of a miss.
func (s *server) forget(m *miss) {
	for p := m.first; p < m.end; p++ {
		if s.reading[p] == m {
			delete(s.reading, p)
		}
	}
	clusters.Put(m.buf)
}

func (m *miss) failed(err error) error {
	return fmt.Errorf("reading %v of the snapshot's memory for a fault: %w", m, err)
}

// read reads a miss, for whom the guest does not wait for ever: a read that takes too long
// fails the server, even one that cannot be broken off.
func (s *server) read(m *miss) {
	ctx, cancel := context.WithTimeoutCause(s.ctx, s.limit, s.tooSlow())
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if s.ctx.Err() == nil {
			s.fail(m.failed(context.Cause(ctx)))
		}
	})
	m.err = s.back.readWaiting(ctx, m.contents(m.first, m.end-m.first), m.first)
	stop()
	if m.err == nil {
		s.counter.bytesRead.Add(int64(m.end-m.first) * pageSize)
	}
	s.tell(func() { s.misses = append(s.misses, m) })
}

// serveMisses answers the faults whose contents have come. Where the kernel wants events
// read first, the rest waits.
func (s *server) serveMisses() error {
	for len(s.came) > 0 {
		m := s.came[0]
		if m.err != nil {
			return m.failed(m.err)
		}
		again, err := s.installMiss(m, m.faults[0])
		if again || err != nil {
			return err
		}
		s.came = s.came[1:]
		s.forget(m)
		s.counter.handler.Add(int64(time.Since(m.began)))
		// Others' pages came with it, or are asked for anew.
		s.faults = append(s.faults, m.faults[1:]...)
	}
	return nil
}

// installMiss installs the page of a fault, and then what its cluster lacks of contents.
// What has changed since it was read is looked at: the guest may have given the page back, or it may
// be there by now.
func (s *server) installMiss(m *miss, ev userfaultfd.Event) (again bool, err error) {
	addr := ev.Address &^ (pageSize - 1)
	switch {
	case s.removed.has(m.page):
		s.faults = append(s.faults, ev) // zeros now
	case s.present.has(m.page):
		if again, err = s.wake(m.page, addr); again || err != nil {
			return again, err
		}
	default:
		_, err = s.guest.FD.Copy(addr, m.contents(m.page, 1), 0)
		if again, err = s.answered(addr, err); again || err != nil {
			return again, err
		}
		s.present.set(m.page)
		s.counter.faults.Add(1) // last: who sees it finds the others
	}
	if m.end-m.first == 1 {
		return false, nil
	}
	s.beside.finished.set(m.page / clusterPages)
	// Those that must wait for events to be read can be asked for.
	_, err = s.install(m.first, m.end, s.unplanned, func(p, n uint32, addr uint64) (uint32, error) {
		bytes, err := s.guest.FD.Copy(addr, m.contents(p, n), 0)
		s.installedBeside(p, uint32(bytes/pageSize))
		return uint32(bytes / pageSize), err
	})
	return false, err
}
