package memory

import (
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// serveFaults answers the faults at hand, in order. A fault that the kernel
// will not have answered yet stays at the head: the caller reads the pending
// events, then tries again.
func (s *server) serveFaults() error {
	for i, ev := range s.faults {
		start := time.Now()
		again, err := s.serveFault(ev)
		s.counter.handler.Add(int64(time.Since(start)))
		if err != nil {
			return err
		}
		if again {
			s.faults = append(s.faults[:0], s.faults[i:]...)
			return nil
		}
	}
	s.faults = s.faults[:0]
	return nil
}

// serveFault makes the page of one fault present and wakes who waits for it.
func (s *server) serveFault(ev userfaultfd.Event) (again bool, err error) {
	page, ok := s.pageOf(ev.Address)
	if !ok {
		return false, fmt.Errorf("guest memory: a fault at %#x is outside the guest's regions", ev.Address)
	}
	if s.rec != nil && !s.removed.has(page) {
		s.rec.touch(page, ev.Flags&userfaultfd.FaultWrite != 0)
	}
	addr := ev.Address &^ (pageSize - 1)
	if s.left.has(page) { // it was waiting when the page was left, and may still
		return s.answered(addr, syscall.EEXIST)
	}
	s.ahead = s.ahead || s.plan != nil && s.plan.index(page) >= 0
	if s.present.has(page) {
		return s.wake(page, addr)
	}
	zero := s.isZero(page)
	held := s.sample.contents(page)
	if !zero && s.plan != nil && held == nil {
		if served, again, err := s.serveFromPlan(page); served || again || err != nil {
			if served {
				s.counter.faults.Add(1)
			}
			return again, err
		}
		if s.comes(page) {
			s.waiting = append(s.waiting, ev)
			return false, nil
		}
	}
	switch {
	case zero:
		_, err = s.zeroPages(addr, pageSize)
	case held != nil:
		_, err = s.guest.FD.Copy(addr, held, 0)
	default:
		return s.serveMiss(ev, page)
	}
	again, err = s.answered(addr, err)
	if err == nil && !again {
		s.present.set(page)
		if zero {
			s.counter.zeroPages.Add(1)
			s.beside.zeros(page, page+1)
		}
		s.counter.faults.Add(1) // last: who sees it finds the others
	}
	return again, err
}

// wake wakes who waits for a page that was installed since: with its neighbours,
// for another thread's fault, or ahead. If it is not there after all, since the
// guest has given it back and that has not been read yet, there is another fault,
// and the page is not taken to be there for that.
func (s *server) wake(page uint32, addr uint64) (again bool, err error) {
	if again, err = s.answered(addr, syscall.EEXIST); err == nil && !again {
		s.present.clear(page)
		s.counter.faults.Add(1)
	}
	return again, err
}

// comes says that the contents of a page are being read with others of the plan.
// They are there sooner than if they were read for the fault alone, which nothing
// else could be done beside.
func (s *server) comes(page uint32) bool {
	i := s.plan.index(page)
	return i >= 0 && int32(i) < s.issued.Load() && !s.plan.runs[i].done && s.plan.runs[i].data == nil
}

func (s *server) isZero(page uint32) bool { return s.removed.has(page) || !s.back.data.has(page) }

// answered judges the kernel's answer to installing the one page at addr.
func (s *server) answered(addr uint64, err error) (again bool, _ error) {
	switch err {
	case nil:
		return false, nil
	case syscall.EEXIST:
		// Someone was faster, or the prefetch was; whoever waits does not know.
		if err := s.guest.FD.Wake(addr, pageSize); err != nil && err != syscall.ENOENT {
			return false, s.judge(addr, err)
		}
		return false, nil
	case syscall.EAGAIN:
		s.letVMMRun()
		return true, nil
	}
	return false, s.judge(addr, err)
}

// letVMMRun gives the thread that changes the mappings time to get on.
func (s *server) letVMMRun() {
	if s.refused++; s.refused%32 != 0 {
		runtime.Gosched()
		return
	}
	time.Sleep(20 * time.Microsecond)
}

func (s *server) judge(addr uint64, err error) error {
	switch err {
	case syscall.ENOENT, syscall.ESRCH, syscall.EBADF:
		return errGone
	}
	return fmt.Errorf("installing a page of guest memory at %#x: %w", addr, err)
}

// zeroPages installs zeros, where the kernel has no zero page for the mapping
// by a copy.
func (s *server) zeroPages(addr, length uint64) (int, error) {
	if s.zero == nil {
		n, err := s.guest.FD.ZeroPage(addr, length, 0)
		if err != syscall.EINVAL {
			return n, err
		}
		s.zero = make([]byte, 16*pageSize)
	}
	return s.guest.FD.Copy(addr, s.zero[:min(length, uint64(len(s.zero)))], 0)
}

// serveFromPlan answers a fault from contents that are in memory already, its
// neighbours with it.
func (s *server) serveFromPlan(page uint32) (served, again bool, err error) {
	r := s.plan.find(page)
	if r == nil || r.done || r.data == nil {
		return false, false, nil
	}
	done, err := s.installRun(r)
	return done, !done, err
}

// installPiece goes on with the current chunk.
func (s *server) installPiece() error {
	start := time.Now()
	now := &s.ready[0]
	for budget := s.piece; budget > 0 && now.from < now.to; {
		r := &s.plan.runs[now.from]
		if !r.done {
			budget -= int(r.Pages)
			done, err := s.installRun(r)
			if err != nil {
				return err
			}
			if !done {
				break
			}
		}
		now.from++
	}
	s.counter.install.Add(int64(time.Since(start)))
	if now.from == now.to {
		s.ready = s.ready[1:]
	}
	return nil
}

// installRun installs the pages of a run that are not there yet. done is false
// when events must be read first.
func (s *server) installRun(r *planned) (done bool, err error) {
	done, err = s.install(r.First, r.End(), s.lacks, func(page, n uint32, addr uint64) (uint32, error) {
		n, err := s.installPages(r, page, n, addr)
		s.installedPages(r, page, n)
		return n, err
	})
	if done {
		s.plan.finish(r)
	}
	return done, err
}

// install installs those of the pages [page, end) that are wanted, by as few
// calls of put as there are rows of them; put returns how many of n pages it did.
// done is false when events must be read first, or for an error.
func (s *server) install(page, end uint32, wanted func(page uint32) bool, put func(page, n uint32, addr uint64) (uint32, error)) (done bool, err error) {
	for page < end {
		if !wanted(page) {
			page++
			continue
		}
		addr, contiguous, ok := s.hostAddr(page)
		if !ok {
			page++ // of the file, and in no region
			continue
		}
		n := uint32(1)
		for n < min(end-page, contiguous) && wanted(page+n) {
			n++
		}
		did, err := put(page, n, addr)
		if err == syscall.ENOENT && n > 1 {
			// Not one mapping from end to end, perhaps: page by page then.
			did, err = put(page, 1, addr)
		}
		n = did
		s.present.setRange(page, page+n)
		page += n
		if err == nil {
			continue
		}
		if err = s.skip(addr+uint64(n)*pageSize, err); err == errAgain {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		page++
	}
	return true, nil
}

// lacks says that a page is to be installed ahead.
func (s *server) lacks(page uint32) bool {
	return !s.present.has(page) && !s.removed.has(page) && !s.left.has(page) && !s.sample.holds(page)
}

func (s *server) installedPages(r *planned, page, n uint32) {
	s.counter.prefetched.Add(int64(n))
	if r.Zero {
		s.counter.zeroPages.Add(int64(n))
		s.beside.zeros(page, page+n)
	}
}

var errAgain = syscall.EAGAIN

// skip decides about a page of a run that could not be installed: nil to go on
// with the next one, errAgain to read events first.
func (s *server) skip(addr uint64, err error) error {
	again, err := s.answered(addr, err)
	if again {
		return errAgain
	}
	return err
}

// installPages installs n pages of a run and returns how many it did.
func (s *server) installPages(r *planned, page, n uint32, addr uint64) (uint32, error) {
	var done int
	var err error
	if r.Zero {
		done, err = s.zeroPages(addr, uint64(n)*pageSize)
	} else {
		off := int(page-r.First) * pageSize
		done, err = s.guest.FD.Copy(addr, r.data[off:off+int(n)*pageSize], 0)
	}
	return uint32(done / pageSize), err
}
