package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces are, for ip-netns(8) and everybody.
const netnsDir = "/run/netns"

// ownThread is the network namespace of the calling thread.
const ownThread = "/proc/thread-self/ns/net"

// in runs fn on a thread that is in the namespace, and returns what it returns.
// Sockets and descriptors that fn opens belong to the namespace; fn must not
// block on anything but the kernel.
func (s *Slots) in(ns *os.File, fn func() error) error {
	return s.away(func() error { return enter(ns) }, fn)
}

// away moves a thread out of the daemon's namespace by calling leave, runs fn
// there, and brings the thread back.
func (s *Slots) away(leave, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := leave(); err != nil {
			runtime.UnlockOSThread() // it has not moved
			done <- err
			return
		}
		err := fn()
		if back := enter(s.home); back != nil {
			// The thread stays locked and so ends with this goroutine, instead of
			// running others in the wrong namespace.
			done <- errors.Join(err, fmt.Errorf("returning to the daemon's network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// enter moves the calling thread into the namespace.
func enter(ns *os.File) error {
	raw, err := ns.SyscallConn()
	if err != nil {
		return fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
	}
	// Control keeps the descriptor from being closed, and its number from
	// becoming another's, during the call.
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		set = err
	}
	if set != nil {
		return fmt.Errorf("entering network namespace %s: %w", ns.Name(), set)
	}
	return nil
}

// newNamespace makes a namespace of that name, calls setup on a thread in it,
// and returns a descriptor of it. When it fails nothing is left.
func (s *Slots) newNamespace(name string, setup func() error) (ns *os.File, err error) {
	path := filepath.Join(netnsDir, name)
	leave := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		return nil
	}
	err = s.away(leave, func() error {
		if err := pin(path); err != nil {
			return err
		}
		if ns, err = os.Open(path); err != nil {
			return err
		}
		return setup()
	})
	if err != nil {
		if ns != nil {
			err = errors.Join(err, ns.Close(), unpin(path))
		}
		return nil, err
	}
	return ns, nil
}

// pin gives the calling thread's namespace a name.
func pin(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("naming a network namespace: %w", err)
	}
	err = f.Close()
	if err == nil {
		err = unix.Mount(ownThread, path, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("naming a network namespace %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// unpin takes the name of a namespace away. The namespace ends when no process,
// socket or descriptor holds it.
func unpin(path string) error {
	// EINVAL: a crash came between the file and the mount.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing network namespace: %w", err)
	}
	return nil
}

// prepareNetNSDir makes netnsDir ready as ip-netns(8) does: a mount of its own
// that is shared, so that unmounting a namespace unmounts it in the mount
// namespaces of other services too; else they would keep it alive.
func prepareNetNSDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("preparing network namespaces: %w", err)
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return fmt.Errorf("preparing network namespaces: %w", err)
	}
	defer dir.Close()
	// ip-netns takes the same lock: two at once would stack mounts.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("mounting %s (needs root; in a container, CAP_SYS_ADMIN): %w", netnsDir, err)
	}
	return nil
}

// inode identifies a namespace among those of this boot.
func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
