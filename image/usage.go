package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/filelock"
)

// Use notes that an image is used now: in the time of its directory, so that it
// is known after a restart, too. From then on no other process removes it, until
// this store is closed, or removes it itself.
func (s *Store) Use(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	hold, err := filelock.Hold(dir)
	if errors.Is(err, filelock.ErrHeld) { // it is being removed
		err = os.ErrNotExist
	}
	if err != nil {
		return usageError(digest, err)
	}
	s.mu.Lock()
	before := s.used[digest] // of a directory that may have been replaced
	s.used[digest] = hold
	s.mu.Unlock()
	now := time.Now()
	return usageError(digest, errors.Join(before.Release(), os.Chtimes(dir, now, now)))
}

// unuse lets go of an image.
func (s *Store) unuse(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.used[digest].Release() // unlocking cannot fail
	delete(s.used, digest)
}

// Usage says when an image was last used (deployed, or noted by Use), and what
// it occupies on disk, its holes not counted.
func (s *Store) Usage(digest string) (last time.Time, bytes int64, err error) {
	dir, err := s.path(digest)
	if err != nil {
		return last, 0, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return last, 0, usageError(digest, err)
	}
	for _, name := range []string{diskFile, metaFile} {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, name), &st) == nil { // a damaged image occupies what is left
			bytes += st.Blocks * 512
		}
	}
	return info.ModTime(), bytes, nil
}

func usageError(digest string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNotFound, digest)
	case err != nil:
		return fmt.Errorf("image %s: %w", digest, err)
	}
	return nil
}
