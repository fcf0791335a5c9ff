// Package marked finds processes whose starter is gone, by a mark that they bear,
// and ends them without hitting another that has got their number meanwhile.
package marked

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Bears says whether a process has the mark, NAME=value, in its environment. A
// jailer wipes that: behind it the mark is the last of the arguments that the VMM
// ignores. It is false for processes that are gone and for those that are not ours
// to look into.
func Bears(p procfs.Proc, mark string) bool {
	if env, err := p.Environ(); err == nil && slices.Contains(env, mark) {
		return true
	}
	args, err := p.CmdLine()
	return err == nil && len(args) > 1 && slices.Equal(args[len(args)-2:], []string{"--", mark})
}

// Kill signals a process through a pidfd, and returns that; -1 when the process is
// gone, or still, which is asked once the pidfd is there, says that it is another.
func Kill(pid int, still func(procfs.Proc) bool) (fd int, err error) {
	fd, err = unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	if p, err := procfs.NewProc(pid); err != nil || !still(p) {
		return -1, unix.Close(fd)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return -1, errors.Join(fmt.Errorf("pidfd_send_signal: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// Await waits until the process of that pidfd has ended.
func Await(ctx context.Context, fd int) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for its end: %w", err)
		}
		if k > 0 {
			return nil
		}
	}
}
