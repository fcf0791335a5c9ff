package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inNetNS calls fn on a thread that is in the network namespace at path; ""
// calls it where it is. Processes started and devices opened by fn are in that
// namespace.
func inNetNS(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening own network namespace: %w", err)
	}
	defer own.Close()
	if err := enter(path); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = fn()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so that it ends with this goroutine instead of
		// running others in the wrong namespace.
		return fmt.Errorf("leaving network namespace %s: %w", path, back)
	}
	runtime.UnlockOSThread()
	return err
}

// enter moves the calling thread into the network namespace at path.
func enter(path string) error {
	if path == "" {
		return nil
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", path, err)
	}
	return nil
}

var errMainThread = errors.New("on the main thread")

// startIn has start fork on a thread in the network namespace at path. That
// thread must not be the process's main one: it is the one thread that does not
// end when a goroutine abandons it, so it would hold on to the namespace for
// good, and /proc/self would show the wrong one. Then start is called again:
// the main thread, left as it was, runs no more goroutines.
func startIn(path string, cmd *exec.Cmd, start func(*exec.Cmd, func() error) error) error {
	err := start(cmd, func() error {
		if unix.Gettid() == unix.Getpid() {
			return errMainThread
		}
		return enter(path)
	})
	if errors.Is(err, errMainThread) {
		err = start(cmd, func() error { return enter(path) })
	}
	return err
}

// OpenTap attaches to the tap device of that name in the host's namespace,
// with virtio-net headers. The descriptor carries frames until it is closed.
func OpenTap(netns, name string) (*os.File, error) {
	var tap *os.File
	err := inNetNS(netns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("opening /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("attaching to it: %w", err)
		}
		tap = os.NewFile(uintptr(fd), "tap "+name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return tap, nil
}

// OwnTap lets a user attach to the tap device of that name, as a VMM does that
// opens it itself.
//
// No process is forked meanwhile, which until its exec would have the descriptor too.
func OwnTap(netns, name string, uid, gid int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	tap, err := OpenTap(netns, name)
	if err != nil {
		return err
	}
	defer tap.Close()
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if set = unix.IoctlSetInt(int(fd), unix.TUNSETOWNER, uid); set == nil {
			set = unix.IoctlSetInt(int(fd), unix.TUNSETGROUP, gid)
		}
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("tap %s: giving it to user %d: %w", name, uid, err)
	}
	return nil
}

// onThread runs fn on a thread that is not used again.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- fn()
	}()
	return <-done
}

// fileSlack is how much larger than guest memory, in MiB, a file may be that a
// VMM writes: device state takes some.
const fileSlack = 64

// FileLimit is the size in bytes that no file grows beyond by what the VMM of a
// guest with that much memory writes: one that was taken over cannot fill a disk.
func FileLimit(memoryMiB int) uint64 { return uint64(memoryMiB+fileSlack) << 20 }

// limit sets the limits of a process that has just been started. A core dump
// of a VMM would hold the guest's memory. The process may have ended already,
// which is no concern of this function; where it has become another user's,
// CAP_SYS_RESOURCE is needed, which some containers lack.
func limit(pid int, spec Spec) {
	set := func(resource int, n uint64) {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil)
	}
	set(unix.RLIMIT_CORE, 0)
	set(unix.RLIMIT_FSIZE, FileLimit(spec.MemoryMiB))
	if spec.MaxFiles > 0 {
		set(unix.RLIMIT_NOFILE, spec.MaxFiles)
	}
}
