package memory

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/skep-dev/skep/memory/workingset"
)

func (src Source) of() workingset.Of {
	return workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size}
}

// openRecording begins a session without prefetch that records what a later one
// prefetches; why is the reason that there is nothing yet. Where another session records
// already it returns what that has seen so far.
func (o *Policies) openRecording(s *session, why error) []workingset.Touch {
	switch {
	case errors.Is(why, os.ErrNotExist):
		s.say("no working set yet")
	default:
		s.say("working set refused: %v", why)
	}
	rec := newRecorder(s.back.pages, firstTouches)
	if other, ok := o.record(s.src.Dir, rec); !ok {
		s.say("another instance is recording it")
		return other.soFar()
	}
	s.say("recording it")
	s.server.rec = rec
	return nil
}

// claim makes the caller the one who writes what is recorded of a snapshot.
func (o *Policies) claim(dir string) bool {
	_, ok := o.record(dir, nil)
	return ok
}

// record is claim for who records by rec; if another does, it returns by what, nil where
// that only writes.
func (o *Policies) record(dir string, rec *recorder) (*recorder, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other, ok := o.recording[dir]; ok {
		return other, false
	}
	o.recording[dir] = rec
	return rec, true
}

func (o *Policies) release(dir string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.recording, dir)
}

// Responded freezes a recording and saves it, beside the instance's further life.
func (s *session) Responded() {
	defer s.traced()
	rec := s.server.rec
	if rec == nil {
		return
	}
	touches := rec.freeze()
	if touches == nil {
		return
	}
	if s.learner != nil {
		s.observed(touches)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.owner.release(s.src.Dir)
		return
	}
	s.recorded = true
	s.work.Go(func() {
		defer s.owner.release(s.src.Dir)
		if err := s.save(touches); err != nil {
			s.say("%v", err)
		}
	})
}

// Abandoned ends a recording whose invocation never got its whole response. The
// next restore may record in its place.
func (s *session) Abandoned() {
	defer s.traced()
	rec := s.server.rec
	if rec == nil || rec.freeze() == nil {
		return
	}
	if s.learner != nil {
		s.server.endSample()
		return
	}
	s.owner.release(s.src.Dir)
}

// save writes what was recorded, and what was prefetched meanwhile of a trial set,
// whose place it takes.
func (s *session) save(touches []workingset.Touch) error {
	if err := saveBoth(context.WithoutCancel(s.ctx), s.src, s.back, merge(s.trial, touches, nil)); err != nil {
		return err
	}
	return errors.Join(s.removeTrial(), s.owner.history(s.src).recorded())
}

// saveBoth writes trace and working set. The working set comes last: a trace alone
// does no harm.
func saveBoth(ctx context.Context, src Source, back *backing, touches []workingset.Touch) error {
	t := &workingset.Trace{Of: src.of(), Touches: touches}
	if err := workingset.SaveTrace(src.Dir, t); err != nil {
		return err
	}
	return saveSet(ctx, src, back, t)
}

// saveSet makes the working set of a trace's pages.
func saveSet(ctx context.Context, src Source, back *backing, t *workingset.Trace) error {
	zeros, err := back.zeroPages(ctx, t.Pages())
	if err != nil {
		return fmt.Errorf("recording the working set: %w", err)
	}
	runs := workingset.Runs(t.Touches, zeros.has, 0)
	return workingset.SaveSet(src.Dir, t.Of, runs, func(p []byte, first uint32) error { return back.read(ctx, p, first) })
}

// zeroPages finds the pages among those given that hold zeros, holes or not.
func (b *backing) zeroPages(ctx context.Context, pages []uint32) (bitmap, error) {
	zeros := newBitmap(int(b.pages))
	buf := make([]byte, pageSize)
	for _, p := range pages {
		if b.data.has(p) {
			if err := b.read(ctx, buf, p); err != nil {
				return nil, err
			}
			if !allZero(buf) {
				continue
			}
		}
		zeros.set(p)
	}
	return zeros, nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	return true
}

// EnsureSet makes the working set of a snapshot from its trace when there is
// none that can be used.
func EnsureSet(ctx context.Context, src Source, t *workingset.Trace) error {
	if _, f, err := workingset.LoadSet(src.Dir, src.of()); err == nil {
		return f.Close()
	}
	back, err := openBacking(ctx, src, &holeMaps{}, make(chan struct{}, 1))
	if err != nil {
		return err
	}
	defer back.close()
	return saveSet(ctx, src, back, t)
}
