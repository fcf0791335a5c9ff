package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/workingset"
)

// session is what the policies that serve faults have in common: the memory
// file, the server, and what was counted.
type session struct {
	owner  *Policies
	policy string
	src    Source
	back   *backing
	server *server
	count  counters

	ctx    context.Context // ends fetching; cancelled by Close
	cancel context.CancelFunc
	work   sync.WaitGroup // fetchers and watchers

	files []*setFile         // closed by Close
	set   fileID             // of the working set that it installs
	tries bool               // a recording may become a trial set
	trial []workingset.Touch // of the trial set that it installs for want of a working set
	// others is what the session that is recording the snapshot had seen when this one was opened.
	others []workingset.Touch
	share  share // of the buffers

	read    *sharedRead // nil: this session reads by itself
	learner *learner    // nil: this session does not learn

	// begin, when set, is what Prefetch does, and prefetch what Install does before
	// it waits.
	begin    func()
	begun    sync.Once
	prefetch func(ctx context.Context) error

	span    trace.Span // of the serving
	spanned sync.Once  // it has ended

	mu       sync.Mutex
	note     string // guarded by mu
	recorded bool   // guarded by mu
	missed   int64  // guarded by mu
	wasted   int64  // guarded by mu
	attached bool   // guarded by mu
	closed   bool   // guarded by mu
}

// open begins a session that serves faults; plan makes what is to be installed
// ahead of them, nil for nothing.
func (o *Policies) open(ctx context.Context, name string, src Source, makePlan func(*backing) (*plan, error)) (*session, error) {
	back, err := openBacking(ctx, src, &o.holes, o.slots)
	if err != nil {
		return nil, fmt.Errorf("memory policy %s: %w", name, err)
	}
	var p *plan
	if makePlan != nil {
		if p, err = makePlan(back); err != nil {
			back.close()
			return nil, fmt.Errorf("memory policy %s: %w", name, err)
		}
	}
	s := &session{owner: o, policy: name, src: src, back: back, missed: -1, wasted: -1}
	s.server = newServer(back, p, &s.count)
	// The request that opens a session ends before the session does.
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.server.spin, s.server.ctx, s.server.limit, s.server.spawn = &o.spin, s.ctx, cmp.Or(src.ReadLimit, o.limit), s.work.Go
	s.trace(ctx)
	return s, nil
}

func (s *session) Mapped() bool { return false }

func (s *session) Attach(ctx context.Context, g userfaultfd.Guest) error {
	if err := s.attach(ctx, g); err != nil {
		g.FD.Close()
		if g.Gone != nil {
			g.Gone.Close()
		}
		return fmt.Errorf("memory policy %s: taking over guest memory: %w", s.policy, err)
	}
	return nil
}

func (s *session) attach(ctx context.Context, g userfaultfd.Guest) error {
	if err := checkGuest(g, s.src.Size); err != nil {
		return err
	}
	// One buffer for the pages of faults, for as long as the instance lives: a
	// fault must not wait for the pool, and the pool must not be used up by
	// instances that idle. It is small, and not counted against the bound.
	s.server.buf = make([]byte, pageSize)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.attached || ctx.Err() != nil {
		return errors.Join(errors.New("the session is over or has memory already"), ctx.Err())
	}
	if !s.server.start(g) {
		return errors.New("the session is over")
	}
	s.attached = true
	if g.Gone != nil {
		s.work.Go(s.server.watchGone)
	}
	return nil
}

func (s *session) Prefetch() {
	s.begun.Do(func() {
		if s.begin != nil {
			s.begin()
		}
	})
}

func (s *session) Install(ctx context.Context) error {
	s.Prefetch()
	if s.prefetch != nil {
		if err := s.prefetch(ctx); err != nil {
			return err
		}
	}
	select {
	case <-s.server.enough:
	case <-s.server.failed:
		return s.server.err
	case <-s.server.stopped:
		if err := s.Err(); err != nil {
			return err
		}
		return errGone
	case <-ctx.Done():
		return fmt.Errorf("installing guest memory: %w", context.Cause(ctx))
	}
	if r := s.server.rec; r != nil {
		r.resume()
	}
	return nil
}

func (s *session) Failed() <-chan struct{} { return s.server.failed }

func (s *session) Err() error {
	select {
	case <-s.server.failed:
		return s.server.err
	default:
		return nil
	}
}

func (s *session) Stats() api.MemoryStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.count
	var remote *api.RemoteMemory
	if from, ok := s.back.from.(interface{ Remote() *api.RemoteMemory }); ok {
		remote = from.Remote()
	}
	return api.MemoryStats{
		Remote: remote,
		Policy: s.policy, Prefetched: c.prefetched.Load(), Faults: c.faults.Load(), ZeroPages: c.zeroPages.Load(), ZeroedAhead: c.zeroedAhead.Load(),
		Missed: s.missed, Wasted: s.wasted, BytesRead: c.bytesRead.Load(), FetchTime: time.Duration(c.fetch.Load()),
		InstallTime: time.Duration(c.install.Load()), HandlerTime: time.Duration(c.handler.Load()),
		Recorded: s.recorded, Note: s.note,
	}
}

// say adds to the note of the invocation's record.
func (s *session) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.note != "" {
		s.note += "; "
	}
	s.note += fmt.Sprintf(format, args...)
}

func (s *session) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	attached := s.attached
	s.mu.Unlock()

	s.begun.Do(func() {}) // nothing begins from now on
	s.cancel()
	s.server.stop()
	if s.read != nil {
		s.read.leave(s)
	}
	var err error
	if attached {
		if gone := s.server.guest.Gone; gone != nil {
			_ = gone.Close() // ends watchGone
		}
		err = s.server.guest.FD.Close()
	}
	s.work.Wait()
	s.Abandoned()
	for _, f := range s.files {
		f.close()
	}
	s.back.close()
	return err
}
