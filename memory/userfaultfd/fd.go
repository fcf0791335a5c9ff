package userfaultfd

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FD is an open userfaultfd. Its methods may be called from many goroutines,
// Close at any time: it waits for the calls that are in the kernel, so that no
// call ever reaches a descriptor number that has become someone else's.
type FD struct {
	n    uintptr
	file *os.File // once through API: registered with the runtime's poller, so that a waiting goroutine holds no thread
	raw  syscall.RawConn

	refs  atomic.Int64 // calls in the kernel, plus one until Close, plus closing from then on
	close sync.Once
	idle  chan struct{} // closed when refs has reached closing: nobody is left, and nobody comes

	batch batch // of ReadEvents; see there
}

// closing is the bit of FD.refs that lets no more calls in. Without it, callers
// that come again and again could keep Close waiting for ever.
const closing = 1 << 62

// New makes a userfaultfd for this process's own memory: for probing and for
// processes that stand in for a VMM.
func New() (*FD, error) {
	n, err := create()
	if err != nil {
		return nil, explainNew(err)
	}
	return newFD(n)
}

// newFD takes ownership of descriptor n, which must be a userfaultfd.
func newFD(n int) (*FD, error) {
	if err := unix.SetNonblock(n, true); err != nil {
		unix.Close(n)
		return nil, fmt.Errorf("making the userfaultfd non-blocking: %w", err)
	}
	f := &FD{n: uintptr(n), idle: make(chan struct{})}
	f.refs.Store(1)
	return f, nil
}

// watch registers the FD with the runtime's poller. Before UFFDIO_API the
// kernel reports it as broken to a poller, which remembers that: so not sooner.
func (f *FD) watch() error {
	file := os.NewFile(f.n, "userfaultfd")
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching the userfaultfd: %w", err)
	}
	f.file, f.raw = file, raw
	f.batch.init()
	return nil
}

// isUserfaultfd reports whether a descriptor that came from outside is one.
func isUserfaultfd(n int) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n))
	return err == nil && name == "anon_inode:[userfaultfd]"
}

// enter counts a call in; false when the FD is closed.
func (f *FD) enter() bool {
	for {
		n := f.refs.Load()
		if n&closing != 0 {
			return false
		}
		if f.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (f *FD) closed() bool { return f.refs.Load()&closing != 0 }

func (f *FD) leave() {
	if f.refs.Add(-1) == closing {
		close(f.idle)
	}
}

// Close ends the use of the FD. Kernel calls that are under way end first;
// goroutines in ReadEvents return os.ErrClosed. When it was the last
// descriptor of this userfaultfd, the kernel unregisters the memory and lets
// every waiting thread go on, on pages of zeros: close it only after the
// faulting process has ended.
func (f *FD) Close() error {
	var err error
	f.close.Do(func() {
		f.refs.Add(closing)
		// A reader that is parked would never leave; it is no kernel call.
		_ = f.SetReadDeadline(time.Unix(1, 0))
		f.leave()
		<-f.idle
		if f.file == nil {
			err = unix.Close(int(f.n))
			return
		}
		err = f.file.Close()
	})
	return err
}

// SetReadDeadline makes a waiting ReadEvents return os.ErrDeadlineExceeded at
// t; a time in the past wakes it at once. It is how the goroutine that reads
// events is told of other work.
func (f *FD) SetReadDeadline(t time.Time) error {
	if f.file == nil {
		return os.ErrNoDeadline
	}
	return f.file.SetReadDeadline(t)
}

// Poll waits on the calling thread until events can be read, for at most
// timeout (negative: for ever), and reports whether they can. It is for
// measuring; ReadEvents waits without holding a thread.
func (f *FD) Poll(timeout time.Duration) (bool, error) {
	if !f.enter() {
		return false, os.ErrClosed
	}
	defer f.leave()
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	for {
		p := []unix.PollFd{{Fd: int32(f.n), Events: unix.POLLIN}}
		n, err := unix.Poll(p, ms)
		if err == unix.EINTR {
			continue
		}
		return n > 0 && p[0].Revents&unix.POLLIN != 0, err
	}
}
