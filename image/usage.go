package image

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Use notes that an image is used now: in the time of its directory, so that it
// is known after a restart, too.
func (s *Store) Use(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	now := time.Now()
	return usageError(digest, os.Chtimes(dir, now, now))
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
	case os.IsNotExist(err):
		return fmt.Errorf("%w: %s", ErrNotFound, digest)
	case err != nil:
		return fmt.Errorf("image %s: %w", digest, err)
	}
	return nil
}
