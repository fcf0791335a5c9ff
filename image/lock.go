package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// locks keep the goroutines of this process, and other processes with the same
// store, from working on one image at a time. Between processes they are locks
// on single bytes of one file: byte 0 is held, shared, as long as a store is
// open; a byte that the digest gives while an image is worked on. The kernel
// drops them with the process.
type locks struct {
	file *os.File

	mu   sync.Mutex // guards work
	work map[string]chan struct{}
}

const (
	lockFile = ".lock"
	openByte = 0
	lockPoll = 25 * time.Millisecond
)

// openLocks opens the lock file of a store. alone is called if no other process
// has the store open, and none can open it before it returns.
func openLocks(dir string, alone func() error) (_ *locks, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	l := &locks{file: f, work: map[string]chan struct{}{}}
	switch err := l.set(unix.F_OFD_SETLK, unix.F_WRLCK, openByte); {
	case err == nil:
		if err := alone(); err != nil {
			return nil, err
		}
	case !isHeld(err):
		return nil, err
	}
	// Whoever has it exclusively is at the line above and soon done.
	return l, l.set(unix.F_OFD_SETLKW, unix.F_RDLCK, openByte)
}

func (l *locks) set(command int, kind int16, at int64) error {
	for {
		err := unix.FcntlFlock(l.file.Fd(), command, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				err = fmt.Errorf("locking %s: %w", l.file.Name(), err)
			}
			return err
		}
	}
}

func isHeld(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// byteOf is where the lock of a digest is. Two digests with one byte would wait
// for each other, and nothing worse.
func byteOf(digest string) int64 {
	var b [8]byte
	copy(b[:], digest[max(0, len(digest)-8):])
	return int64(binary.BigEndian.Uint64(b[:])>>2) + 1
}

// claim waits until nobody else works on the digest.
func (l *locks) claim(ctx context.Context, digest string) (release func(), err error) {
	for {
		l.mu.Lock()
		busy, taken := l.work[digest]
		if !taken {
			busy = make(chan struct{})
			l.work[digest] = busy
		}
		l.mu.Unlock()
		if !taken {
			return l.claimAmongProcesses(ctx, digest, busy)
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *locks) claimAmongProcesses(ctx context.Context, digest string, busy chan struct{}) (release func(), err error) {
	done := func() {
		l.mu.Lock()
		delete(l.work, digest)
		l.mu.Unlock()
		close(busy)
	}
	at := byteOf(digest)
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := l.set(unix.F_OFD_SETLK, unix.F_WRLCK, at)
		if err == nil {
			return func() {
				_ = l.set(unix.F_OFD_SETLK, unix.F_UNLCK, at) // cannot fail; closing the file drops it too
				done()
			}, nil
		}
		if !isHeld(err) {
			done()
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			done()
			return nil, ctx.Err()
		}
	}
}
