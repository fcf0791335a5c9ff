package memory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/memory/workingset"
)

// A trial set is the working set of a restore that was made to see whether the
// snapshot works. What its request needed is not what an invocation does, but far
// nearer to it than nothing: stream prefetches it until the first invocation has
// left a working set, of both.

// trial is where the trial set of the snapshot lies.
func (src Source) trial() Source {
	src.Dir = filepath.Join(src.Dir, "trial")
	return src
}

// Tried ends a recording, and saves it under the policy that makes use of it.
func (s *session) Tried() error {
	defer s.traced()
	if !s.tries {
		s.Abandoned()
		return nil
	}
	if s.server.rec == nil {
		return nil
	}
	touches := s.server.rec.freeze()
	if touches == nil {
		return nil
	}
	defer s.owner.release(s.src.Dir)
	src := s.src.trial()
	if err := os.Mkdir(src.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("recording what a trial touched: %w", err)
	}
	return saveBoth(context.WithoutCancel(s.ctx), src, s.back, touches)
}

// openTrial has a session without a working set, which has not begun yet, prefetch
// the trial set. nil: there is none to use; else the caller sees to its closing.
func (s *session) openTrial() *setFile {
	src := s.src.trial()
	trace, err := workingset.LoadTrace(src.Dir, src.of())
	if err != nil {
		s.refuseTrial(err)
		return nil
	}
	set, file, err := s.owner.sets.load(src)
	if err != nil {
		s.refuseTrial(err)
		return nil
	}
	s.trial = trace.Touches
	s.server.plan = set.layout.plan()
	s.say("prefetching what a trial touched")
	return &setFile{readySet: set, file: file, path: filepath.Join(src.Dir, workingset.SetFile)}
}

func (s *session) refuseTrial(err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		s.say("what a trial touched is refused: %v", err)
	}
}

// removeTrial removes the trial set: there is something better, or it is wrong.
func (s *session) removeTrial() error { return os.RemoveAll(s.src.trial().Dir) }
