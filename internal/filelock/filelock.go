// Package filelock is how processes that share a directory keep out of each
// other's way. The stores of images and snapshots and whatever is published by
// package atomicfile go by it. The kernel drops a process's locks when it ends,
// however it ends, so none has to be taken from the dead.
//
// There are two kinds. Neither is a matter between processes only: two goroutines
// of one process are to it like two processes.
//
// Hold and Own are about a file or directory: whoever uses one, or fills one that
// is to be published, holds it; whoever would delete one must own it, which is not
// to be had while anybody holds it. Neither waits. They stay with a directory that
// is renamed, so what was held while it was filled is held when it is published.
//
// A Claim is the right to do a piece of work, that others wait for.
package filelock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrHeld is wrapped when a lock is not to be had because of somebody else's.
var ErrHeld = errors.New("somebody else is using it")

// Lock is a lock that this process has, until Release.
type Lock struct {
	f     *os.File
	path  string
	claim bool
	once  sync.Once
	err   error // of Release
}

// Hold keeps others from owning a file or directory; any number may hold it. It
// is fs.ErrNotExist when it is not there, ErrHeld while somebody owns it.
func Hold(path string) (*Lock, error) { return take(path, os.O_RDONLY, unix.LOCK_SH) }

// Own makes sure that nobody holds a file or directory, nor begins to before
// Release. Errors are those of Hold.
func Own(path string) (*Lock, error) { return take(path, os.O_RDONLY, unix.LOCK_EX) }

// take opens and locks what is at path, and is still there once it is locked.
func take(path string, flag, how int) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		there := false
		if err = flock(f, how|unix.LOCK_NB); err == nil {
			there, err = isAt(f, path)
		}
		if there {
			return &Lock{f: f, path: path}, nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		// It was deleted, renamed or replaced meanwhile: what is there now?
	}
}

func flock(f *os.File, how int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var locked error
	err = conn.Control(func(fd uintptr) {
		for locked = unix.EINTR; locked == unix.EINTR; {
			locked = unix.Flock(int(fd), how)
		}
	})
	switch {
	case err != nil:
		return err
	case locked == unix.EWOULDBLOCK:
		return fmt.Errorf("locking %s: %w", f.Name(), ErrHeld)
	case locked != nil:
		return &os.PathError{Op: "flock", Path: f.Name(), Err: locked}
	}
	return nil
}

// isAt says whether path is still what was opened.
func isAt(f *os.File, path string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}

// Release lets go of the lock. It is idempotent; no lock (nil) has nothing to let
// go of.
func (l *Lock) Release() error {
	if l == nil {
		return nil
	}
	l.once.Do(func() {
		if l.claim { // nobody else is at it, and who waits for it will make it anew
			if err := os.Remove(l.path); !errors.Is(err, fs.ErrNotExist) {
				l.err = err
			}
		}
		// A child that is between fork and exec has a copy of the descriptor: to
		// close ours would not be enough.
		l.err = errors.Join(l.err, flock(l.f, unix.LOCK_UN), l.f.Close())
	})
	return l.err
}
