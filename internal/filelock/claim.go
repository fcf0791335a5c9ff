package filelock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Claim waits until nobody else has the claim named by path, or ctx ends. When
// its owner dies the next one has it at once. The file is there as long as
// somebody has it, or has died with it; its directory must be there.
//
// The file is a named pipe, which nothing is ever written to. Its owner has it
// open for writing, and locked; those who wait read from it, and read its end when
// no writer is left: when the owner has released it or died, after which the kernel
// dropped the lock first. A wait for flock itself cannot be cancelled.
func Claim(ctx context.Context, path string) (*Lock, error) {
	for {
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		l, err := claim(path)
		if err == nil || !errors.Is(err, ErrHeld) && !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
		if err := await(ctx, path); err != nil {
			return nil, fmt.Errorf("waiting for %s: %w", path, err)
		}
	}
}

// TryClaim is Claim for who does not wait: ErrHeld while somebody has it.
func TryClaim(path string) (*Lock, error) {
	for {
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		if l, err := claim(path); !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
	}
}

// claim takes the claim if it is free.
func claim(path string) (*Lock, error) {
	st, err := os.Lstat(path)
	if err == nil && st.Mode().Type() != fs.ModeNamedPipe {
		err = fmt.Errorf("%s is in the way of a lock: remove it", path)
	}
	if err != nil {
		return nil, err
	}
	l, err := take(path, os.O_RDWR, unix.LOCK_EX)
	if err == nil {
		l.claim = true
	}
	return l, err
}

// await waits until nobody has the pipe open for writing.
func await(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := f.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// Sweep removes what is left in dir of claims whose owners died, if their names
// begin with prefix.
func Sweep(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || e.Type() != fs.ModeNamedPipe {
			continue
		}
		l, err := claim(filepath.Join(dir, e.Name()))
		if err == nil {
			err = l.Release()
		}
		if err != nil && !errors.Is(err, ErrHeld) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
