// Package atomicfile makes files and directories appear on disk whole or not at
// all: what is written goes beside its final place, is synced, and is renamed.
// After a crash the old state or the new one is there, never a part. Whatever
// skep keeps on disk is published through it: images, snapshots, kernels,
// working sets.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/filelock"
)

// TempPrefix begins the names of files and directories that are being written.
// Who writes one holds it (package filelock); one that nobody holds was left by a
// crash, and Clean removes it.
const TempPrefix = ".tmp-"

// WriteFile puts data at path with that mode, replacing what was there.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return Write(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Write puts what fill writes at path with that mode, replacing what was there.
// When fill fails, its error is returned and path is as it was.
func Write(path string, mode fs.FileMode, fill func(w io.Writer) error) error {
	return WriteAt(path, mode, func(f *os.File) error { return fill(f) })
}

// WriteAt is Write for what is not written from beginning to end.
func WriteAt(path string, mode fs.FileMode, fill func(f *os.File) error) error {
	if err := replace(path, mode, true, fill); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// WriteUnsynced is WriteFile for what may be lost when the host crashes, and is
// then missing or damaged in a way that its reader sees.
func WriteUnsynced(path string, data []byte, mode fs.FileMode) error {
	return replace(path, mode, false, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

func replace(path string, mode fs.FileMode, sync bool, fill func(f *os.File) error) (err error) {
	f, lock, err := create(path)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), ignoreMissing(os.Remove(f.Name())))
		}
		err = errors.Join(err, lock.Release())
	}()
	if err := finish(f, mode, sync, fill); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// create makes a file beside path, and holds it.
func create(path string) (*os.File, *filelock.Lock, error) {
	for {
		f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+filepath.Base(path)+"-")
		if err != nil {
			return nil, nil, err
		}
		lock, there, err := hold(f.Name())
		if there {
			return f, lock, nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
	}
}

// hold holds what was just made, unless a Clean was faster: then it is not there
// any more. On a file system without locks nobody can own it, and Clean leaves it.
func hold(path string) (_ *filelock.Lock, there bool, err error) {
	lock, err := filelock.Hold(path)
	switch {
	case errors.Is(err, filelock.ErrHeld), errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, unix.ENOLCK):
		return nil, true, nil
	}
	return lock, err == nil, err
}

// finish fills, syncs and closes f.
func finish(f *os.File, mode fs.FileMode, sync bool, fill func(f *os.File) error) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil || !sync {
		return err
	}
	return f.Sync()
}

// Staged is a directory that is being filled, to be published.
type Staged struct {
	Dir string // where it is before that

	lock      *filelock.Lock
	published bool
}

// Stage makes a directory in parent to be filled and published. Close it in any
// case.
func Stage(parent, name string) (*Staged, error) {
	for {
		dir, err := os.MkdirTemp(parent, TempPrefix+name+"-")
		if err != nil {
			return nil, fmt.Errorf("making a directory for %s: %w", name, err)
		}
		lock, there, err := hold(dir)
		if err != nil {
			return nil, fmt.Errorf("making a directory for %s: %w", name, errors.Join(err, os.Remove(dir)))
		}
		if there {
			return &Staged{Dir: dir, lock: lock}, nil
		}
	}
}

// Publish syncs everything in the directory and renames it to final, which must
// not exist (fs.ErrExist otherwise: somebody else was first) and be on the same
// file system. It is held until Close.
func (s *Staged) Publish(final string) error {
	if err := SyncTree(s.Dir); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	if err := s.Place(final); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(final)); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	return nil
}

// Place is Publish without syncing anything: for what nobody relies on after a crash.
func (s *Staged) Place(final string) error {
	if err := renameNoReplace(s.Dir, final); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	s.published = true
	return nil
}

// Close removes the directory, unless it was published. It is idempotent.
func (s *Staged) Close() error {
	var err error
	if !s.published {
		err = os.RemoveAll(s.Dir)
	}
	return errors.Join(err, s.lock.Release())
}

// SyncTree syncs the regular files and the directories at and below dir.
func SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || d.Type().IsRegular() {
			return syncPath(path)
		}
		return nil
	})
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error { return syncPath(dir) }

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Remove removes a directory, of which others see all or nothing. When it fails
// half way, or with a crash, Clean does the rest.
func Remove(dir string) error {
	trash := filepath.Join(filepath.Dir(dir), TempPrefix+filepath.Base(dir)+"-"+rand.Text()[:8])
	if err := os.Rename(dir, trash); err != nil {
		return err
	}
	return errors.Join(SyncDir(filepath.Dir(dir)), os.RemoveAll(trash))
}

// Clean removes what writers that died have left in dir. What others are writing
// it leaves alone.
func Clean(dir string) error {
	left, err := filepath.Glob(filepath.Join(globQuote(dir), TempPrefix+"*"))
	if err != nil {
		return fmt.Errorf("looking for half-written files in %s: %w", dir, err)
	}
	var errs []error
	for _, path := range left {
		switch lock, err := filelock.Own(path); {
		case err == nil:
			errs = append(errs, os.RemoveAll(path), lock.Release())
		case !errors.Is(err, filelock.ErrHeld) && !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("removing what a crash left: %w", err))
		}
	}
	return errors.Join(errs...)
}

// globQuote keeps filepath.Glob from reading a pattern into a directory's name.
func globQuote(dir string) string {
	var q []rune
	for _, r := range dir {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			q = append(q, '\\')
		}
		q = append(q, r)
	}
	return string(q)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
