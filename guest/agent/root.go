package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// makeRoot lays the function's root: the read-only disk under a tmpfs, and in
// it what a container's runtime would mount.
func makeRoot(s guest.Start) error {
	for _, m := range []mount{
		{"/dev/vda", lower, "ext4", unix.MS_RDONLY, "noload"},
		{"tmpfs", scratch, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", max(1, s.DiskMiB))},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, d := range []string{scratch + "/upper", scratch + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	overlay := mount{"overlay", root, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + scratch + "/upper,workdir=" + scratch + "/work"}
	if err := overlay.do(); err != nil {
		return err
	}
	if st, err := os.Stat(lower); err == nil {
		if err := os.Chmod(root, st.Mode().Perm()); err != nil {
			return err
		}
	}
	// The overlay has mounts of its own of both. Whoever gets out of the root, which takes
	// only CAP_SYS_CHROOT, is not to find by these what may not be written to by the root.
	for _, path := range []string{lower, scratch} {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("hiding %s: %w", path, err)
		}
	}
	for _, m := range []mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet | unix.MS_RDONLY, ""},
		{group, "/sys/fs/cgroup", "", unix.MS_BIND, ""},
		{"", "/sys/fs/cgroup", "", unix.MS_BIND | unix.MS_REMOUNT | quiet | unix.MS_RDONLY, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=65536k"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", quiet, fmt.Sprintf("mode=1777,size=%dm", max(1, s.DiskMiB))},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
	} {
		if err := mountInRoot(m); err != nil && !(m.fstype == "mqueue" && err == unix.ENODEV) {
			return fmt.Errorf("mounting %s at the function's %s: %w", cmp.Or(m.fstype, m.source), m.target, err)
		}
	}
	if err := makeDevices(); err != nil {
		return fmt.Errorf("filling the function's /dev: %w", err)
	}
	return makeTmp(root)
}

func mountInRoot(m mount) error {
	dir, err := dirInRoot(root, m.target)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mount(m.source, inFD(dir), m.fstype, m.flags, m.data)
}

// makeTmp makes /tmp where the image has none. One that it has is as it wants it.
func makeTmp(root string) error {
	old, err := openAt(root, "/tmp", unix.O_PATH)
	if err == nil {
		return old.Close()
	}
	tmp, err := dirInRoot(root, "/tmp")
	if err != nil {
		return err
	}
	defer tmp.Close()
	return os.Chmod(inFD(tmp), os.ModeSticky|0o777)
}

// inFD is a path of an open file or directory, whatever links its name may lead
// over.
func inFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// openInRoot opens a path for reading as a process would that has root as its
// root directory: symbolic links do not lead out of it.
func openInRoot(root, path string) (*os.File, error) {
	return openAt(root, path, unix.O_RDONLY|unix.O_NONBLOCK)
}

func openAt(root, path string, flags uint64) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// maxLinks bounds the links to nowhere that are followed in one path.
const maxLinks = 40

// dirInRoot opens a directory in root, after the image's links and with its
// "..", as the kernel would for a process in there, and makes what is missing of
// it, also where a link leads to it.
func dirInRoot(root, name string) (*os.File, error) {
	dir, err := openAt(root, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	at, links := "", 0
	for parts := strings.Split(name, "/"); len(parts) > 0; {
		part := parts[0]
		parts = parts[1:]
		if part == "" || part == "." {
			continue
		}
		next, target, err := enter(root, dir, at, part)
		if target != "" { // a link to nowhere: what it names is made in its place
			if links++; links > maxLinks {
				dir.Close()
				return nil, &os.PathError{Op: "open", Path: at + "/" + part, Err: unix.ELOOP}
			}
			parts = append(strings.Split(target, "/"), parts...)
			if !strings.HasPrefix(target, "/") {
				continue
			}
			at = ""
			next, err = openAt(root, "/", unix.O_PATH|unix.O_DIRECTORY)
		} else {
			at += "/" + part
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// enter opens part in dir, whose path in root is at, and makes it when it is
// missing. Of a link to something that is missing it returns the target.
func enter(root string, dir *os.File, at, part string) (next *os.File, target string, err error) {
	next, err = openAt(root, at+"/"+part, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, os.ErrNotExist) {
		return next, "", err
	}
	err = unix.Mkdirat(int(dir.Fd()), part, 0o755)
	if err == unix.EEXIST {
		if target, err := os.Readlink(inFD(dir) + "/" + part); err == nil && target != "" {
			return nil, target, nil
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("making %s in the function's root: %w", at+"/"+part, err)
	}
	next, err = openAt(root, at+"/"+part, unix.O_PATH|unix.O_DIRECTORY)
	return next, "", err
}

// workDir opens the function's working directory and returns its path in root
// without links. One that is missing is made, as other runtimes do.
func workDir(root, name string) (dir *os.File, path string, err error) {
	if dir, err = dirInRoot(root, name); err != nil {
		return nil, "", fmt.Errorf("the working directory %s: %w", name, err)
	}
	real, err := os.Readlink(inFD(dir))
	if err != nil {
		dir.Close()
		return nil, "", fmt.Errorf("the working directory %s: %w", name, err)
	}
	return dir, "/" + strings.TrimPrefix(strings.TrimPrefix(real, root), "/"), nil
}
