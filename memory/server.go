package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// server serves the memory of one instance. One goroutine, loop, does every
// call on the userfaultfd: it reads events, answers faults, and between them
// installs what is queued, a piece at a time. That is what makes removals
// right without a lock: a page can only be installed between two reads, the
// kernel refuses to install while a removal is unread (EAGAIN), and once it is
// read no later install brings old content back. Reading is done elsewhere and
// reaches it through queues, but for the pages of a fault that need no waiting.
type server struct {
	guest   userfaultfd.Guest
	back    *backing
	plan    *plan     // may be nil
	rec     *recorder // may be nil
	counter *counters
	spin    *spinners
	sample  *sample // may be nil
	beside  *beside // nil: what was not planned is served page by page
	leaves  bool    // holes to the kernel

	// Owned by loop.
	removed bitmap // given back by the guest: zeros from then on
	present bitmap // installed: only a hint, and only for prefetching
	left    bitmap // to the kernel: their faults are not delivered
	faults  []userfaultfd.Event
	waiting []userfaultfd.Event // faults on pages of the plan whose contents are being read
	reading map[uint32]*miss    // pages that are being read for a fault
	came    []*miss             // whose contents have come
	spare   *miss               // for the next; nil: there is none
	relief  *time.Timer         // goes off when loop reads a miss itself and takes long
	evs     [userfaultfd.MaxBatch]userfaultfd.Event
	buf     []byte // of a page that is read for a fault
	zero    []byte // pages of zeros, where the kernel has no zero page; made on first use
	ready   []span // whose contents are in memory, the first being installed
	refused uint   // times that the kernel said EAGAIN
	ahead   bool   // a fault that is being served was on a page of the plan: the guest is ahead of it
	piece   int    // pages to be installed before events are looked at again

	mu      sync.Mutex
	queue   []chunk // guarded by mu: waiting for loop
	misses  []*miss // guarded by mu: as the queue
	closing bool    // guarded by mu
	started bool    // guarded by mu: guest is set
	abandon bool    // guarded by mu: forget what of the plan has not come
	sampled bool    // guarded by mu: nothing is held back from now on
	work    atomic.Bool
	here    atomic.Pointer[miss] // that loop reads itself, or has read last
	issued  atomic.Int32         // runs of the plan, the first so many, that are being read or have come

	enough   chan struct{} // closed when so much of the plan is done that the vCPUs may run
	isEnough bool          // owned by loop: enough is closed
	mayLeave int           // runs that need not be done for that; set before start

	ctx      context.Context // of reads for faults
	limit    time.Duration   // of one
	spawn    func(func())    // for reads: who owns the server waits for them
	stopped  chan struct{}   // closed when loop has ended
	failed   chan struct{}   // closed when memory can no longer be served
	failOnce sync.Once
	err      error // set before failed is closed
}

// counters are read while the server runs.
type counters struct {
	faults, zeroPages, prefetched, zeroedAhead, bytesRead atomic.Int64
	fetch, install, handler                               atomic.Int64 // nanoseconds
}

// errGone ends the loop quietly: the process or its memory is no more.
var errGone = errors.New("the guest's memory is gone")

func newServer(back *backing, p *plan, c *counters) *server {
	s := &server{
		back: back, plan: p, counter: c,
		removed: newBitmap(int(back.pages)), present: newBitmap(int(back.pages)), left: newBitmap(int(back.pages)),
		faults: make([]userfaultfd.Event, 0, 2*userfaultfd.MaxBatch),
		enough: make(chan struct{}), stopped: make(chan struct{}), failed: make(chan struct{}),
	}
	s.relief = time.AfterFunc(time.Hour, s.takeOver)
	s.relief.Stop() // until there is something to take over
	return s
}

// checkGuest refuses guest memory that this snapshot cannot fill.
func checkGuest(g userfaultfd.Guest, size int64) error {
	if err := userfaultfd.CheckRegions(g.Regions); err != nil {
		return err
	}
	for _, r := range g.Regions {
		if r.PageSize != pageSize {
			return fmt.Errorf("guest memory at %#x has pages of %d bytes: only %d are served; start the VMM without huge pages", r.HostAddr, r.PageSize, pageSize)
		}
		if int64(r.Offset+r.Size) > size {
			return fmt.Errorf("guest memory at %#x reaches to offset %d: the snapshot's memory has %d bytes", r.HostAddr, r.Offset+r.Size, size)
		}
	}
	return nil
}

// fail ends the server for a reason; the first one counts.
func (s *server) fail(err error) {
	s.failOnce.Do(func() {
		s.err = err
		close(s.failed)
	})
}

// start takes over the guest and lets loop run. It reports false when the
// server was stopped before.
func (s *server) start(g userfaultfd.Guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.started {
		return false
	}
	s.guest, s.started = g, true
	s.spawn(s.loop)
	return true
}

// push queues a chunk of the plan, before or after start. It takes over the
// chunk's reference on its buffer.
func (s *server) push(c chunk) {
	if !s.tell(func() { s.queue = append(s.queue, c) }) && c.buf != nil {
		c.buf.unref()
	}
}

// giveUp forgets what of the plan has not been pushed: nothing more will come.
func (s *server) giveUp() { s.tell(func() { s.abandon = true }) }

// endSample has pages no longer held back.
func (s *server) endSample() { s.tell(func() { s.sampled = true }) }

// stop makes loop end; it returns when it has, and all contents are let go.
func (s *server) stop() {
	s.tell(func() { s.closing = true })
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started {
		s.letGo()
		return
	}
	<-s.stopped
}

// tell changes what loop is to do, and wakes it. False: it has ended.
func (s *server) tell(change func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	change()
	if !s.work.Swap(true) && s.started {
		_ = s.guest.FD.SetReadDeadline(time.Unix(1, 0))
	}
	return true
}

// loop is the owner of the guest's memory until it ends, or another goroutine's takes
// over.
func (s *server) loop() {
	if s.plan == nil {
		s.letRun()
	}
	if s.leaves {
		s.leaves = false // once: this goroutine may be the next of several
		s.leaveHoles()
	}
	var err error
	for err == nil {
		err = s.turn()
	}
	switch {
	case err == errTaken:
		return
	case errors.Is(err, errGone), errors.Is(err, os.ErrClosed):
	default:
		s.fail(err)
	}
	s.relief.Stop()
	s.letGo()
	close(s.stopped)
}

// letRun says that the vCPUs may run.
func (s *server) letRun() {
	if !s.isEnough {
		s.isEnough = true
		close(s.enough)
	}
}

// turn reads what events there are, answers the faults, and installs a piece of
// the plan, or where there was nothing else to do a block of zeros; it waits when
// there is nothing.
func (s *server) turn() error {
	if err := s.takeWork(); err != nil {
		return err
	}
	if s.plan != nil && s.plan.left <= s.mayLeave {
		s.letRun()
	}
	busy := len(s.faults) > 0 || len(s.came) > 0 || len(s.ready) > 0 || s.beside.waits()
	if err := s.readEvents(!busy); err != nil {
		return err
	}
	if err := s.serveMisses(); err != nil {
		return err
	}
	if len(s.faults) > 0 {
		// A guest of many threads has always one that waits. If installing waited for
		// none to be there, it would get on no faster than they do, fault by fault.
		if err := s.serveFaults(); err != nil || len(s.faults) > 0 || len(s.ready) == 0 {
			return err
		}
	}
	s.nextPiece()
	switch {
	case len(s.ready) > 0:
		return s.installPiece()
	case s.beside.waits():
		return s.installBlock()
	}
	return nil
}

// nextPiece says how much is installed before the next look at the events: twice as
// much each time that the guest was ahead of the plan, so that it does not stay so.
func (s *server) nextPiece() {
	if s.ahead {
		s.piece = min(2*max(s.piece, pieceLimit), maxPiece)
	} else {
		s.piece = pieceLimit
	}
	s.ahead = false
}

// takeWork moves what was queued to the plan. Contents become usable for
// faults at once, whatever their place in the queue.
func (s *server) takeWork() error {
	if !s.work.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work.Store(false)
	if s.closing {
		return errGone
	}
	s.came = append(s.came, s.misses...)
	s.misses = s.misses[:0]
	if len(s.queue) > 0 || s.abandon {
		s.retry()
	}
	for _, c := range s.queue {
		s.plan.take(c)
		if s.sample != nil {
			s.sample.keepAll(s.plan.runs[c.from:c.to])
		}
		s.ready = append(s.ready, c.span)
	}
	s.queue = s.queue[:0]
	if s.sampled {
		s.sample = nil
	}
	if s.abandon {
		s.mayLeave = len(s.plan.runs)
		s.issued.Store(0)
	}
	return nil
}

// retry has the faults that wait for contents looked at again: these have come,
// will not come, or are not wanted any more.
func (s *server) retry() {
	s.faults = append(s.faults, s.waiting...)
	s.waiting = s.waiting[:0]
}

// readEvents appends faults to s.faults and applies everything else at once:
// the kernel delivers faults before the removals that preceded them.
func (s *server) readEvents(wait bool) error {
	n, err := s.nextEvents(wait)
	if err != nil {
		return err
	}
	for _, ev := range s.evs[:n] {
		switch ev.Kind {
		case userfaultfd.KindFault:
			s.faults = append(s.faults, ev)
		case userfaultfd.KindRemove, userfaultfd.KindUnmap:
			s.applyRemove(ev.Start, ev.End)
			s.retry()
		default:
			return fmt.Errorf("guest memory: the VMM did what cannot be followed (event %#x): it forked or moved its mappings", ev.Kind)
		}
	}
	return nil
}

func (s *server) nextEvents(wait bool) (int, error) {
	n, err := s.guest.FD.TryReadEvents(s.evs[:])
	if n > 0 || err != nil || !wait {
		return n, err
	}
	if n, err = s.spinForEvents(); n > 0 || err != nil {
		return n, err
	}
	// The deadline is lifted before the queue is looked at: a kick that comes
	// later puts it back, one that came before has left something in the queue.
	_ = s.guest.FD.SetReadDeadline(time.Time{})
	if s.work.Load() {
		return 0, nil
	}
	n, err = s.guest.FD.ReadEvents(s.evs[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return n, err
}

// applyRemove notes that pages were given back: they are zeros from now on.
func (s *server) applyRemove(start, end uint64) {
	for _, r := range s.guest.Regions {
		from, to := max(start, r.HostAddr), min(end, r.HostAddr+r.Size)
		for a := from; a < to; a += pageSize {
			page := pageAt(r, a)
			s.removed.set(page)
			s.present.clear(page)
		}
	}
}

func pageAt(r userfaultfd.Region, addr uint64) uint32 {
	return uint32((r.Offset + addr - r.HostAddr) / pageSize)
}

// hostAddr returns where a page is in the VMM's process, and how many pages
// from it on are contiguous there.
func (s *server) hostAddr(page uint32) (addr uint64, pages uint32, ok bool) {
	off := uint64(page) * pageSize
	for i := range s.guest.Regions {
		r := &s.guest.Regions[i]
		if off >= r.Offset && off-r.Offset < r.Size {
			return r.HostAddr + off - r.Offset, uint32((r.Offset + r.Size - off) / pageSize), true
		}
	}
	return 0, 0, false
}

func (s *server) pageOf(addr uint64) (uint32, bool) {
	for i := range s.guest.Regions {
		if r := &s.guest.Regions[i]; addr >= r.HostAddr && addr-r.HostAddr < r.Size {
			return pageAt(*r, addr), true
		}
	}
	return 0, false
}

// letGo drops the references on contents that were never installed.
func (s *server) letGo() {
	s.mu.Lock()
	queue := s.queue
	s.queue, s.closing = nil, true // nothing is taken from now on
	s.mu.Unlock()
	for _, c := range queue {
		if c.buf != nil {
			c.buf.unref()
		}
	}
	if s.plan != nil {
		for i := range s.plan.runs {
			s.plan.drop(&s.plan.runs[i])
		}
	}
}

// watchGone ends the server when the VMM's socket says that it has died.
func (s *server) watchGone() {
	var b [64]byte
	for {
		if _, err := s.guest.Gone.Read(b[:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				s.tell(func() { s.closing = true })
			}
			return
		}
	}
}
