package memory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/workingset"
)

// Ahead serves the memory of a machine that was started before there is a request for
// it, while its device state is loaded and it waits: page by page, as few are touched.
// Its memory is then handed over to the session of a restore. Close must be called
// exactly once, after the VMM's process is gone.
type Ahead struct {
	s   *session
	rec *recorder
}

// Ahead begins to serve, for a machine of that snapshot; for which policy its memory
// will be filled is not known yet.
func (o *Policies) Ahead(ctx context.Context, src Source) (*Ahead, error) {
	s, err := o.open(ctx, "ahead", src, nil)
	if err != nil {
		return nil, err
	}
	a := &Ahead{s: s, rec: newRecorder(s.back.pages, aheadTouches)}
	s.server.rec = a.rec
	return a, nil
}

// aheadTouches is for how many touches there is room at first: a loaded QEMU has made 10.
const aheadTouches = 64

// Attach is as Session's.
func (a *Ahead) Attach(ctx context.Context, g userfaultfd.Guest) error { return a.s.Attach(ctx, g) }

// Attached says that it has memory to serve, or has handed that over.
func (a *Ahead) Attached() bool {
	if a == nil {
		return false
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return a.s.server.guest.FD != nil
}

// Runs says that the vCPUs run from now on: what is touched is recorded with its time.
func (a *Ahead) Runs() { a.rec.resume() }

// Touched is how many pages have been touched so far.
func (a *Ahead) Touched() int { return len(a.rec.soFar()) }

// Failed is closed when the memory could not be served; Err says why.
func (a *Ahead) Failed() <-chan struct{} { return a.s.Failed() }

// Err is why it failed; nil: it has not.
func (a *Ahead) Err() error { return a.s.Err() }

// HandOver gives the memory to a restore's session. g is the memory of a VMM that has
// loaded nothing ahead, and so has it yet. What was touched meanwhile counts as touched
// by the guest: a restore that has its process to itself needs it.
func (a *Ahead) HandOver(ctx context.Context, g userfaultfd.Guest, to Session) error {
	if g.FD != nil {
		a.rec.freeze()
		return to.Attach(ctx, g)
	}
	g, err := a.letGo()
	touches := a.rec.freeze() // now that no more come
	if err != nil {
		return fmt.Errorf("taking over memory that was served ahead: %w", err)
	}
	if s, ok := to.(*session); ok {
		s.expect(touches)
	}
	return to.Attach(ctx, g)
}

// letGo ends serving and returns the memory, which is no longer Close's.
func (a *Ahead) letGo() (userfaultfd.Guest, error) {
	none, s := userfaultfd.Guest{}, a.s
	s.mu.Lock()
	mine := s.attached && !s.closed
	s.mu.Unlock()
	if !mine {
		return none, errors.New("there is none, or not any more")
	}
	s.server.stop()
	if err := s.Err(); err != nil {
		return none, err
	}
	// The session that comes would not know that those pages are zeros now.
	if s.server.removed.count() > 0 {
		return none, errors.New("the VMM has given pages back")
	}
	g := s.server.guest
	// A fault that was read and not answered is raised again.
	for _, r := range g.Regions {
		if err := g.FD.Wake(r.HostAddr, r.Size); err != nil {
			return none, s.server.judge(r.HostAddr, err)
		}
	}
	if err := g.FD.SetReadDeadline(time.Time{}); err != nil {
		return none, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached = false
	return g, nil
}

// Close lets go of the snapshot, and of memory that was not handed over.
func (a *Ahead) Close() error {
	a.rec.freeze() // Session's Close would end the recording of somebody else
	return a.s.Close()
}

// expect has a session that is not attached yet know pages that are there already.
func (s *session) expect(touches []workingset.Touch) {
	for _, t := range touches {
		s.server.present.set(t.Page)
	}
	if s.server.rec != nil {
		s.server.rec.follow(touches)
	}
	if s.server.plan != nil {
		s.server.plan.have(s.server.present)
	}
}
