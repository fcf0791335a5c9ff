package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// A container's process is the first of its PID namespace, and /proc has to be
// that namespace's. Only a process in there can mount it: while the first one
// waits at its gate, this program is run once more beside it, and does just that.

// pidNamespace is one whose first process was started by the agent.
type pidNamespace struct {
	first int      // the process, as the agent sees it
	fd    *os.File // of the process
}

// enter has what the calling thread forks be in the namespace.
func (n *pidNamespace) enter() error {
	if err := unix.Setns(int(n.fd.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("entering the container's PID namespace: %w", err)
	}
	return nil
}

// forkInit forks the first process of a namespace. f.mu is held.
func (f *function) forkInit(l launch, limits []guest.Rlimit) (pid int, err error) {
	var n *pidNamespace
	pid, err = l.forkLimited(limits, func(pid int) (err error) {
		n, err = f.openPIDs(pid)
		return err
	})
	if err != nil {
		if n != nil { // the namespace has ended, and what its /proc shows with it
			err = errors.Join(err, n.fd.Close(), f.remountProc(mountProc))
		}
		return 0, err
	}
	f.pids = n
	return pid, nil
}

// openPIDs opens the namespace whose first process is pid, a child that waits at
// its gate, and makes the root's /proc its.
func (f *function) openPIDs(pid int) (*pidNamespace, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a PID namespace: %w", err)
	}
	n := &pidNamespace{first: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	if err := f.remountProc(n.mountProc); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting the PID namespace's /proc: %w", err), n.fd.Close())
	}
	return n, nil
}

// remountProc has another /proc mounted in the place of the root's, and hides what
// was hidden in that.
func (f *function) remountProc(mount func(dir *os.File) error) error {
	old, err := openAt(f.root, "/proc", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = unix.Unmount(inFD(old), unix.MNT_DETACH)
	old.Close()
	if err != nil {
		return err
	}
	dir, err := openAt(f.root, "/proc", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := mount(dir); err != nil {
		return err
	}
	return hide(f.spec, inProc)
}

func inProc(name string) bool {
	name = path.Clean(name)
	return name == "/proc" || strings.HasPrefix(name, "/proc/")
}

// ends says that a signal ends who does not handle it.
func ends(n unix.Signal) bool {
	switch n {
	case unix.SIGCHLD, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH:
		return false
	}
	return true
}

// handles says that a process handles a signal, or ignores it.
func handles(pid int, n unix.Signal) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true // it has ended
	}
	for line := range strings.Lines(string(b)) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigIgn" && name != "SigCgt" {
			continue
		}
		if m, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); err == nil && m>>(n-1)&1 != 0 {
			return true
		}
	}
	return false
}

// procName is argv[0] of this program when it mounts a namespace's /proc, at the
// directory that is its descriptor procDir.
const (
	procName = "skep-proc"
	procDir  = 0
)

// mountProc mounts the calling process's own.
func mountProc(dir *os.File) error { return unix.Mount("proc", inFD(dir), "proc", quiet, "") }

// mountProc runs this program in the namespace, and waits for it. The caller holds
// function.mu, so that nobody else does.
func (n *pidNamespace) mountProc(dir *os.File) (err error) {
	pid := 0
	onOwnThread(func() {
		if err = n.enter(); err == nil {
			pid, err = syscall.ForkExec("/proc/self/exe", []string{procName}, &syscall.ProcAttr{Files: []uintptr{dir.Fd(), dir.Fd(), 2}})
		}
	})
	if err != nil {
		return err
	}
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(pid, &ws, 0, nil)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		return err
	case ws.Signaled():
		return errors.New(describe(ws))
	case ws.ExitStatus() != 0:
		return syscall.Errno(ws.ExitStatus())
	}
	return nil
}

// IsProcMount says that this process is there to mount a /proc; ProcMount is all
// that it does then. It does not return.
func IsProcMount() bool { return len(os.Args) == 1 && os.Args[0] == procName }

// ProcMount mounts the process's own /proc at the directory that it was given, and
// exits with the error's number.
func ProcMount() {
	err := mountProc(os.NewFile(procDir, "dir"))
	var e syscall.Errno
	errors.As(err, &e)
	os.Exit(int(e))
}
