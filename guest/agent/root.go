package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
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
	for _, m := range []mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet | unix.MS_RDONLY, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("size=%dm", max(1, s.DiskMiB))},
		{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
	} {
		if err := mountInRoot(m); err != nil && !(m.fstype == "mqueue" && err == unix.ENODEV) {
			return fmt.Errorf("mounting %s at the function's %s: %w", m.fstype, m.target, err)
		}
	}
	tmp, err := dirInRoot(root, "/tmp")
	if err != nil {
		return err
	}
	defer tmp.Close()
	return os.Chmod(inFD(tmp), os.ModeSticky|0o777)
}

func mountInRoot(m mount) error {
	dir, err := dirInRoot(root, m.target)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mount(m.source, inFD(dir), m.fstype, m.flags, m.data)
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

// dirInRoot opens a directory in root, after the image's links, and makes what
// is missing of it.
func dirInRoot(root, name string) (*os.File, error) {
	dir, err := openAt(root, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	at := "/"
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at = path.Join(at, part)
		next, err := openAt(root, at, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, os.ErrNotExist) {
			if err = unix.Mkdirat(int(dir.Fd()), part, 0o755); err == nil {
				next, err = openAt(root, at, unix.O_PATH|unix.O_DIRECTORY)
			} else {
				err = fmt.Errorf("making %s in the function's root: %w", at, err) // a link to nowhere, most likely
			}
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}
