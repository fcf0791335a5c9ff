// Package atomicfile makes files and directories appear on disk whole or not at
// all: what is written goes beside its final place, is synced, and is renamed.
// After a crash the old state or the new one is there, never a part. Whatever
// skep keeps on disk is published through it: images, snapshots, kernels,
// working sets.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// TempPrefix begins the names of files and directories that are being written.
// One that is there when nobody writes was left by a crash: Clean removes it.
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
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), ignoreMissing(os.Remove(f.Name())))
		}
	}()
	if err := finish(f, mode, sync, fill); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
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

// Stage makes a directory in parent to be filled and given to Publish. The
// caller removes it when it comes to nothing.
func Stage(parent, name string) (string, error) {
	dir, err := os.MkdirTemp(parent, TempPrefix+name+"-")
	if err != nil {
		return "", fmt.Errorf("making a directory for %s: %w", name, err)
	}
	return dir, nil
}

// Publish syncs everything in the directory staged and renames it to final,
// which must not exist (fs.ErrExist otherwise: somebody else was first) and be
// on the same file system. When it fails, staged is still the caller's.
func Publish(staged, final string) error {
	if err := SyncTree(staged); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	if err := renameNoReplace(staged, final); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	if err := SyncDir(filepath.Dir(final)); err != nil {
		return fmt.Errorf("publishing %s: %w", final, err)
	}
	return nil
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

// Clean removes what a crash left of writes into dir. Nobody may be writing
// into it.
func Clean(dir string) error {
	left, err := filepath.Glob(filepath.Join(globQuote(dir), TempPrefix+"*"))
	if err != nil {
		return fmt.Errorf("looking for half-written files in %s: %w", dir, err)
	}
	var errs []error
	for _, p := range left {
		errs = append(errs, os.RemoveAll(p))
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
