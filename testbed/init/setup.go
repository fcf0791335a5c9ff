package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func mountAll(list ...mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		// The kernel may have mounted devtmpfs by itself.
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mounting %s at %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

func setUp() error {
	if err := mountAll(
		mount{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		mount{"proc", "/proc", "proc", 0, ""},
		mount{"sysfs", "/sys", "sysfs", 0, ""},
	); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	return settle()
}

// loadModules loads what the initramfs lists, in its order. A module that does
// not fit the machine, as one of the two KVMs, is said and passed over.
func loadModules() error {
	list, err := os.ReadFile("/modules.order")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		path := strings.TrimSpace(line)
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			fmt.Fprintf(os.Stderr, "testbed: loading %s: %v\n", path, err)
		}
	}
	return os.RemoveAll("/modules")
}

// enterRoot makes one root of the disks: the payload's files over the base's,
// what is written on the scratch disk. Tests get places on the scratch disk
// itself, since an overlay is no ordinary file system.
func enterRoot() error {
	if err := mountAll(
		mount{"/dev/vda", "/base", "ext4", unix.MS_RDONLY, ""},
		mount{"/dev/vdb", "/payload", "ext4", unix.MS_RDONLY, ""},
		mount{"/dev/vdc", "/rw", "ext4", unix.MS_NOATIME, ""},
	); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "tmp", "vartmp", "home", "var", "out"} {
		if err := os.MkdirAll("/rw/"+dir, 0o755); err != nil {
			return err
		}
	}
	if err := mountAll(
		mount{"overlay", "/root", "overlay", 0, "lowerdir=/payload:/base,upperdir=/rw/upper,workdir=/rw/work"},
		mount{"/rw/tmp", "/root/tmp", "", unix.MS_BIND, ""},
		mount{"/rw/vartmp", "/root/var/tmp", "", unix.MS_BIND, ""},
		mount{"/rw/home", "/root/root", "", unix.MS_BIND, ""},
		mount{"/rw/var", "/root/var/lib/skep", "", unix.MS_BIND, ""},
		mount{"/rw/out", "/root/out", "", unix.MS_BIND, ""},
		mount{"/dev", "/root/dev", "", unix.MS_MOVE, ""},
		mount{"/proc", "/root/proc", "", unix.MS_MOVE, ""},
		mount{"/sys", "/root/sys", "", unix.MS_MOVE, ""},
	); err != nil {
		return err
	}
	if err := mountImages("/root" + imagesIn); err != nil {
		return err
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("making the disks the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("making the disks the root: %w", err)
	}
	return unix.Chdir("/")
}

// imagesIn is where the disk of functions' images is, on a host that has one.
const imagesIn = "/testbed/images"

func mountImages(target string) error {
	const disk = "/dev/vdd"
	if _, err := os.Stat("/root" + disk); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return mountAll(mount{"/root" + disk, target, "ext4", unix.MS_RDONLY, ""})
}

// settle does what an ordinary host's start would.
func settle() error {
	if err := mountAll(
		mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		mount{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		mount{"devpts", "/dev/pts", "devpts", 0, "ptmxmode=666"},
		mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"PATH": "/testbed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": "/root", "LANG": "C.UTF-8", "TERM": "linux",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Chmod("/tmp", 0o1777),
		os.Chmod("/var/tmp", 0o1777),
		os.Symlink("/proc/self/fd", "/dev/fd"),
		unix.Sethostname([]byte("testbed")),
		exec.Command("ip", "link", "set", "lo", "up").Run(),
	)
}
