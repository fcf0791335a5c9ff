package userfaultfd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd and makes a userfaultfd in its address space before it has
// run its first instruction. The program needs no change and notices nothing:
// it is stopped at exec, made to execute the one system call, put back as it
// was, and let go; that takes under a millisecond.
//
// cmd is as for exec.Cmd.Start, credentials, namespaces and cgroup in
// SysProcAttr included; afterwards cmd.Wait works from any goroutine. The
// functions before run, in order, on the locked thread that forks the child
// (to enter a network namespace, say); that thread is not used again when there
// are any, so they need not undo what they do to it.
//
// The child keeps its own descriptor of the userfaultfd, which is on purpose:
// should this process die, its guest freezes instead of running on over pages
// of zeros. It is close-on-exec, and the number is whichever is free.
//
// The FD has not been through API. When Start fails the child is gone, reaped.
func Start(cmd *exec.Cmd, before ...func() error) (fd *FD, err error) {
	if err := checkTraceable(cmd); err != nil {
		return nil, fmt.Errorf("starting %s under a userfaultfd: %w", cmd.Path, err)
	}
	// A child without privileges may not call userfaultfd(2), but may make one
	// from the device when it is handed in open: it lends the child ours.
	dev := -1
	if f, err := os.OpenFile(devicePath, os.O_RDWR, 0); err == nil {
		defer f.Close()
		dev = 3 + len(cmd.ExtraFiles)
		cmd.ExtraFiles = append(cmd.ExtraFiles[:len(cmd.ExtraFiles):len(cmd.ExtraFiles)], f)
		defer func() { cmd.ExtraFiles = cmd.ExtraFiles[:len(cmd.ExtraFiles)-1] }()
	}
	err = startTraced(cmd, before, func(t *tracee) error {
		n, err := t.makeUserfaultfd(dev)
		if err == nil {
			fd, err = takeFD(t.pid, n)
		}
		if err != nil {
			return fmt.Errorf("making a userfaultfd in %s: %w", cmd.Path, err)
		}
		return nil
	})
	if err != nil && fd != nil {
		fd.Close()
		fd = nil
	}
	return fd, err
}

func checkTraceable(cmd *exec.Cmd) error {
	if cmd.SysProcAttr != nil && cmd.SysProcAttr.Pdeathsig != 0 {
		return errors.New("SysProcAttr.Pdeathsig would fire when the thread that forked it ends: leave it out")
	}
	return nil
}

// startTraced starts cmd and has act done to it before its first instruction. The
// functions before run first, on the thread that forks.
func startTraced(cmd *exec.Cmd, before []func() error, act func(*tracee) error) error {
	// Only the thread that forked may trace the child.
	return onThread(before, func() error { return startHere(cmd, act) })
}

// onThread runs the functions before, and then start, on a thread of their own if
// there are any.
func onThread(before []func() error, start func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		for _, f := range before {
			if err := f(); err != nil {
				done <- err
				return // still locked: the runtime ends the thread
			}
		}
		err := start()
		if len(before) == 0 {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// startHere is startTraced on the thread that it is called on.
func startHere(cmd *exec.Cmd, act func(*tracee) error) error {
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Ptrace = true
	old := cmd.SysProcAttr
	cmd.SysProcAttr = &attr
	err := cmd.Start()
	cmd.SysProcAttr = old
	if err != nil {
		return err
	}
	if err := inject(&tracee{pid: cmd.Process.Pid}, act); err != nil {
		_ = cmd.Process.Kill() // also a child in a tracing stop
		_ = cmd.Wait()
		return err
	}
	return nil
}

// inject does act to the child, which is stopping at its exec, and detaches from it.
func inject(t *tracee, act func(*tracee) error) error {
	if err := t.waitStop(); err != nil {
		return err
	}
	// From here the child dies with this thread instead of running on without
	// what was to be done.
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_EXITKILL); err != nil {
		return os.NewSyscallError("ptrace(SETOPTIONS)", err)
	}
	if err := act(t); err != nil {
		return err
	}
	return t.detach()
}

func (t *tracee) makeUserfaultfd(dev int) (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	if dev < 0 {
		n, err := t.syscall(unix.SYS_USERFAULTFD, flags)
		if err != nil {
			return -1, explainNew(err)
		}
		return n, nil
	}
	n, err := t.syscall(unix.SYS_IOCTL, uint64(dev), reqNew, flags)
	if err != nil {
		return -1, explainNew(err)
	}
	if _, err := t.syscall(unix.SYS_CLOSE, uint64(dev)); err != nil {
		return -1, fmt.Errorf("closing the child's descriptor of %s: %w", devicePath, err)
	}
	return n, nil
}

// takeFD duplicates descriptor n of process pid into this one.
func takeFD(pid, n int) (*FD, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	mine, err := unix.PidfdGetfd(pidfd, n, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	return newFD(mine)
}

// tracee is a child under ptrace; its methods run on the thread that forked it.
type tracee struct {
	pid    int
	signal syscall.Signal // one that arrived while it was ours, delivered by detach
}

var errEnded = errors.New("the process ended at once")

// waitStop waits for the next tracing stop. A child that has ended instead is
// left for cmd.Wait to reap.
func (t *tracee) waitStop() error {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, t.pid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("waitid", err)
		}
		const cldExited, cldKilled, cldDumped = 1, 2, 3
		if c := info.Code; c == cldExited || c == cldKilled || c == cldDumped {
			return errEnded
		}
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(t.pid, &ws, unix.WALL, nil); err != nil {
			return os.NewSyscallError("wait4", err)
		}
		if !ws.Stopped() {
			return errEnded // killed between the two calls; reaped just now
		}
		if ws.StopSignal() == syscall.SIGTRAP {
			return nil
		}
		t.signal = ws.StopSignal()
		if err := unix.PtraceSingleStep(t.pid); err != nil {
			return os.NewSyscallError("ptrace(SINGLESTEP)", err)
		}
	}
}

func (t *tracee) detach() error {
	_, _, e := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(t.pid), 0, uintptr(t.signal), 0, 0)
	if e != 0 {
		return os.NewSyscallError("ptrace(DETACH)", e)
	}
	return nil
}
