package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// launch is a process about to be: the function's server, or a further one.
type launch struct {
	root    string   // its root directory
	group   *os.File // its cgroup; nil: the agent's own, in tests
	path    string
	argv    []string
	env     []string
	who     identity
	dir     *os.File
	workDir string     // dir's path in root
	streams []*os.File // stdin, stdout, stderr
	tty     bool       // they are a terminal, which becomes its controlling one
	own     *attributes
	pids    *pidNamespace // that it is in; nil: the agent's
	init    bool          // it is the first of one of its own
	files   unix.Rlimit   // how many it may open
}

// attributes are what a process has of its own and the function has not.
type attributes struct {
	umask           *uint32
	noNewPrivileges bool
	caps            *capabilities
}

// Limits of open files: what programs start with everywhere, since some look at
// each descriptor that they may have, and how far those may go that want more.
var functionFiles = unix.Rlimit{Cur: 1024, Max: 512 << 10}

// fork runs the program, as a container's runtime would. Of pipes and terminals
// it makes its user the owner, so that it may open /dev/stdout. The child inherits
// its directory, which is entered as root: the user need not have the right to
// come to it by its path. Only one call may be under way.
func (l launch) fork() (pid int, err error) {
	for _, s := range l.streams {
		if st, err := s.Stat(); err == nil && s.Name() != os.DevNull && st.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) != 0 {
			if err := s.Chown(int(l.who.uid), -1); err != nil {
				return 0, err
			}
		}
	}
	var before unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &l.files, &before); err != nil {
		return 0, fmt.Errorf("limiting its open files: %w", err)
	}
	if l.own == nil && l.pids == nil {
		pid, err = l.exec()
		err = errors.Join(err, unix.Chdir("/"))
	} else {
		pid, err = l.execApart()
	}
	return pid, errors.Join(err, unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil))
}

func (l launch) exec() (int, error) {
	attr := &syscall.ProcAttr{Env: l.env, Sys: &syscall.SysProcAttr{
		Chroot: l.root, Setsid: true, Setctty: l.tty,
		Credential: &syscall.Credential{Uid: l.who.uid, Gid: l.who.gid, Groups: l.who.groups},
	}}
	if l.group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD, attr.Sys.Unshareflags = true, int(l.group.Fd()), unix.CLONE_NEWCGROUP
	}
	if l.init {
		attr.Sys.Cloneflags = unix.CLONE_NEWPID
	}
	if l.own != nil && l.own.caps != nil {
		attr.Sys.AmbientCaps = l.own.caps.ambient.list()
	}
	for _, s := range l.streams {
		attr.Files = append(attr.Files, s.Fd())
	}
	if err := unix.Fchdir(int(l.dir.Fd())); err != nil {
		return 0, err
	}
	return syscall.ForkExec(l.path, l.argv, attr)
}

// execApart forks from a thread that is given what the child is to inherit, and
// ends with it.
func (l launch) execApart() (pid int, err error) {
	onOwnThread(func() {
		if l.pids != nil {
			err = l.pids.enter()
		}
		if err == nil && l.own != nil {
			err = l.own.take()
		} else if err == nil {
			err = unshareFS()
		}
		if err == nil {
			pid, err = l.exec()
		}
	})
	return pid, err
}

// onOwnThread runs f on a thread that ends then. Never on the first one, which
// cannot end, and is what /proc shows of the whole process.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f) // not on this one, which waits meanwhile
			runtime.UnlockOSThread()
			return
		}
		f() // and never unlocks it: so the thread ends here
	}()
	<-done
}

// take gives the calling thread the attributes. Its directory and umask become
// its own; the rest is a thread's own anyway.
func (a *attributes) take() error {
	if err := unshareFS(); err != nil {
		return err
	}
	if a.umask != nil {
		unix.Umask(int(*a.umask))
	}
	if a.caps != nil {
		if err := a.caps.take(); err != nil {
			return err
		}
	}
	if a.noNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
	}
	return nil
}

// unshareFS makes the calling thread's directory and umask its own.
func unshareFS() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("parting a thread from the others: %w", err)
	}
	return nil
}
