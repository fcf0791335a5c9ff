package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/vmm"
)

// Names of a machine's files, relative to its process's working directory,
// which is the root of its jail, or else Host.Dir. They are part of snapshots.
const (
	diskName      = "root.ext4"
	kernelName    = "vmlinux"
	initramfsName = "initramfs"
	memoryName    = "memory"
	stateName     = "state"
	runName       = "run" // a directory of sockets, of the log, and of what the process writes
)

// entry is one file of the host that a machine sees.
type entry struct {
	name, path string
	writable   bool
	// copy gives the process a copy, of a small file which it may not read.
	copy bool
}

// jail is the directory in which a process runs.
type jail struct {
	host    vmm.Host
	binary  string // path of Firecracker
	jailer  string // path of the jailer, "" for none
	entries []entry
	// attached has a socket made, by which the process hands over its memory.
	attached bool

	// The run directory and what is in it from the start: made before there is a
	// process, which may do with the directory what it likes. A confined process's
	// is on the tmpfs that is its root, and so bounded in size and in files.
	dir    *os.File
	words  words
	faults *net.UnixListener // nil unless attached
}

// confined says whether the process is to run as a user of its own. If not,
// it runs in Host.Dir, with links there.
func (j *jail) confined() bool { return j.host.UID != 0 }

// user is whom the process's files belong to.
func (j *jail) user() int {
	if j.confined() {
		return j.host.UID
	}
	return os.Geteuid()
}

func (j *jail) run() string  { return filepath.Join(j.host.Dir, runName) }
func (j *jail) base() string { return filepath.Join(j.host.Dir, "jail") }

// root is the root directory of the process, seen in its mount namespace. The
// jailer has its own mind about it.
func (j *jail) root() string {
	if j.jailer == "" {
		return j.base()
	}
	return filepath.Join(j.base(), filepath.Base(j.binary), j.host.ID, "root")
}

// make makes what is on the host's side.
func (j *jail) make() error {
	if !j.confined() {
		if err := os.Mkdir(j.run(), 0o700); err != nil {
			return err
		}
		if err := j.furnish(j.run()); err != nil {
			return err
		}
		return j.link()
	}
	for _, e := range j.entries {
		if err := e.check(j.host); err != nil {
			return err
		}
	}
	return os.Mkdir(j.base(), 0o711)
}

// furnish opens the new run directory at path and makes what is in it. It
// becomes the process's own last of all.
func (j *jail) furnish(path string) (err error) {
	if j.dir, err = os.Open(path); err != nil {
		return err
	}
	if err := unix.Mkfifo(j.path(logName), 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: logName, Err: err}
	}
	if j.words, err = openWords(j.path(logName)); err != nil {
		return err
	}
	names := []string{logName}
	if j.attached {
		if j.faults, err = net.ListenUnix("unix", &net.UnixAddr{Name: j.path(faultsName), Net: "unix"}); err != nil {
			return err
		}
		names = append(names, faultsName)
	}
	if !j.confined() {
		return nil
	}
	for _, name := range names {
		if err := unix.Fchownat(int(j.dir.Fd()), name, j.host.UID, j.host.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: name, Err: err}
		}
	}
	return j.dir.Chown(j.host.UID, j.host.GID)
}

// path is a file of the run directory: short enough for a socket's address,
// however deep the directory is, and in whichever mount namespace.
func (j *jail) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", j.dir.Fd(), name)
}

func (j *jail) link() error {
	for _, e := range j.entries {
		path, err := filepath.Abs(e.path)
		if err != nil {
			return err
		}
		if link := filepath.Join(j.host.Dir, e.name); link != path {
			if err := os.Symlink(path, link); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove takes away what make made. Mounts end with their process, and with the
// last descriptor of what is in them.
func (j *jail) remove() error {
	if j.faults != nil {
		_ = j.faults.Close()
	}
	var err error
	if j.dir != nil {
		err = j.dir.Close()
	}
	if j.confined() {
		return errors.Join(err, removeIfThere(j.base())) // an empty directory, here
	}
	err = errors.Join(err, os.RemoveAll(j.run()))
	for _, e := range j.entries {
		link := filepath.Join(j.host.Dir, e.name)
		if st, lerr := os.Lstat(link); lerr == nil && st.Mode()&os.ModeSymlink != 0 {
			err = errors.Join(err, os.Remove(link))
		}
	}
	return err
}

// check makes sure that the process will be able to open the file: it would
// only say that a permission is missing.
func (e *entry) check(h vmm.Host) error {
	st, err := os.Stat(e.path)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if e.copy || !ok {
		return nil
	}
	mode := sys.Mode
	switch {
	case int(sys.Uid) == h.UID:
		mode >>= 6
	case int(sys.Gid) == h.GID:
		mode >>= 3
	}
	if need := uint32(4); mode&need == 0 || e.writable && mode&2 == 0 {
		return fmt.Errorf("%s cannot be opened by user %d, as whom Firecracker runs: its mode is %v", e.path, h.UID, st.Mode().Perm())
	}
	return nil
}

// mount builds the jail. It is called on a thread that is thrown away, and
// whose mount namespace and root directory the process inherits. The jailer
// moves into the jail by itself.
func (j *jail) mount() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("jail", j.base(), "tmpfs", unix.MS_NOSUID, "mode=0711,size=64m,nr_inodes=64"); err != nil {
		return fmt.Errorf("mounting a root directory: %w", err)
	}
	if err := os.MkdirAll(j.root(), 0o711); err != nil {
		return err
	}
	run := filepath.Join(j.root(), runName)
	if err := os.Mkdir(run, 0o700); err != nil {
		return err
	}
	if err := j.furnish(run); err != nil {
		return fmt.Errorf("making its run directory: %w", err)
	}
	for _, e := range j.entries {
		if err := e.mount(j); err != nil {
			return err
		}
	}
	if j.jailer != "" {
		return nil
	}
	if err := (entry{name: binary, path: j.binary}).mount(j); err != nil {
		return err
	}
	if err := j.devices(); err != nil {
		return err
	}
	return enter(j.root())
}

// enter makes dir, a mount, the root of this mount namespace, and lets go of
// all that was mounted before: other file systems must not stay busy for as
// long as the process lives.
func enter(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	// The old root is stacked on the new one, and so needs no directory in it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root directory: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the old root directory: %w", err)
	}
	return nil
}

func (e entry) mount(j *jail) error {
	target := filepath.Join(j.root(), e.name)
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	defer f.Close()
	if !e.copy {
		return bind(e.path, target, e.writable)
	}
	src, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := io.Copy(f, src); err != nil {
		return fmt.Errorf("copying %s: %w", e.path, err)
	}
	return f.Chown(j.host.UID, j.host.GID)
}

func bind(path, target string, writable bool) error {
	if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", path, err)
	}
	if writable {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting %s read-only: %w", path, err)
	}
	return nil
}

// devices makes those that Firecracker opens.
func (j *jail) devices() error {
	if err := os.MkdirAll(filepath.Join(j.root(), "dev/net"), 0o711); err != nil {
		return err
	}
	list := []struct {
		name         string
		major, minor uint32
	}{{"dev/kvm", 10, 232}, {"dev/net/tun", 10, 200}, {"dev/urandom", 1, 9}}
	minor, err := userfaultfdMinor()
	if err != nil {
		return err
	}
	if minor != 0 {
		list = append(list, struct {
			name         string
			major, minor uint32
		}{"dev/userfaultfd", 10, minor})
	}
	for _, d := range list {
		path := filepath.Join(j.root(), d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		if err := os.Chown(path, j.host.UID, j.host.GID); err != nil {
			return err
		}
	}
	return nil
}

// userfaultfdMinor looks up the number of a device that has none of its own; 0
// where the kernel, before 6.1, has no such device.
func userfaultfdMinor() (uint32, error) {
	f, err := os.Open("/proc/misc")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		number, name, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if name != "userfaultfd" {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 20)
		if err != nil {
			return 0, fmt.Errorf("reading /proc/misc: %w", err)
		}
		return uint32(n), nil
	}
	return 0, lines.Err()
}

// mayFault makes sure that the process will be able to make a userfaultfd.
func (j *jail) mayFault() error {
	minor, err := userfaultfdMinor()
	if err != nil || minor != 0 || !j.confined() {
		return err
	}
	if b, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); err == nil && strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	return fmt.Errorf("user %d, as whom Firecracker runs, may not make a userfaultfd on this kernel: run Linux 6.1 or later, which has /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1, or use the memory policy mmap", j.host.UID)
}
