package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// deliveries is where what the host delivers lies: in a file system of its own, of
// which its processes see parts, read-only or not. It is mounted nowhere else, so no
// path leads to where it can be written to.
type deliveries struct {
	made bool // the file system
	at   map[string]delivery
}

// delivery is one of those parts.
type delivery struct {
	dir  *os.File
	name string // in dir
	file bool   // which stays the one that it is: it is what was mounted
}

// deliveredDir is where that is mounted while the parts are made.
var deliveredDir = "/delivered" // another one in tests

// deliveredSize has room for all twice: while something is replaced both are there.
// A part is a directory with one name in it, and its mount point may be in another.
var deliveredSize = fmt.Sprintf("mode=700,size=%d,nr_inodes=%d", 2*guest.MaxDelivered, 4*guest.MaxDeliveredFiles)

// mounted is what was mounted in a root, until it is restricted.
type mounted struct {
	all  []guest.Mount
	tops []*os.File
	deliveries
}

// mountAll makes mounts in a root, in their order. What it has to make for one may be
// in another, so what they forbid comes last.
func mountAll(root string, all []guest.Mount) (*mounted, error) {
	m := &mounted{all: all, deliveries: deliveries{at: map[string]delivery{}}}
	for _, one := range all {
		top, err := m.mount(root, one)
		if err != nil {
			return nil, fmt.Errorf("mounting at %s: %w", one.Path, err)
		}
		m.tops = append(m.tops, top)
	}
	return m, nil
}

// restrict gives the mounts their flags, and leaves no other way to what is delivered.
func (m *mounted) restrict() error {
	for i, top := range m.tops {
		defer top.Close()
		if flags, _ := mountOptions(m.all[i].Options); flags != 0 {
			if err := restrict(top, flags); err != nil {
				return fmt.Errorf("restricting what is mounted at %s: %w", m.all[i].Path, err)
			}
		}
	}
	if !m.made {
		return nil
	}
	if err := unix.Unmount(deliveredDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("hiding what is delivered: %w", err)
	}
	return nil
}

// mount makes one, and opens what is at its path then.
func (d *deliveries) mount(root string, m guest.Mount) (*os.File, error) {
	var from mount
	target, err := targetOf(root, m)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	switch m.Kind {
	case guest.MountMemory:
		if from, err = tmpfsMount(m); err != nil {
			return nil, err
		}
	case guest.MountDirectory, guest.MountFile:
		source, err := d.add(m)
		if err != nil {
			return nil, err
		}
		from = mount{source: source, flags: unix.MS_BIND}
	case guest.MountImage:
		from = mount{source: inFD(target), flags: unix.MS_BIND | unix.MS_REC}
	default:
		return nil, fmt.Errorf("it is of kind %q: want %q, %q, %q or none", m.Kind, guest.MountDirectory, guest.MountFile, guest.MountImage)
	}
	if err := unix.Mount(from.source, inFD(target), from.fstype, from.flags, from.data); err != nil {
		return nil, err
	}
	return openAt(root, m.Path, unix.O_PATH)
}

func targetOf(root string, m guest.Mount) (*os.File, error) {
	if m.Kind == guest.MountFile {
		return fileInRoot(root, m.Path)
	}
	return dirInRoot(root, m.Path)
}

// add makes a part, empty.
func (d *deliveries) add(m guest.Mount) (source string, err error) {
	if !d.made {
		if err := (mount{"tmpfs", deliveredDir, "tmpfs", unix.MS_NODEV, deliveredSize}).do(); err != nil {
			return "", err
		}
		d.made = true
	}
	name := strconv.Itoa(len(d.at))
	dir := path.Join(deliveredDir, name)
	source = path.Join(dir, guest.Delivered)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if m.Kind == guest.MountDirectory {
		err = os.Mkdir(source, 0o755)
	} else {
		err = os.WriteFile(source, nil, 0o644)
	}
	if err != nil {
		return "", err
	}
	below, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	d.at[path.Clean(m.Path)] = delivery{below, guest.Delivered, m.Kind == guest.MountFile}
	return source, err
}

// restrict gives a mount flags beside those that it has.
func restrict(at *os.File, flags uintptr) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(at.Fd()), &st); err != nil {
		return err
	}
	// statfs(2) has these under the same numbers.
	kept := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	return unix.Mount("", inFD(at), "", unix.MS_BIND|unix.MS_REMOUNT|kept|flags, "")
}

// addNames has the host deliver to the files of identityDir as well.
func (d *deliveries) addNames() error {
	dir, err := os.OpenFile(identityDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		d.at[name] = delivery{dir, path.Base(name), true}
	}
	return err
}

// fileInRoot opens a file in root as dirInRoot opens a directory: one that is missing
// is made, also where a link leads to it.
func fileInRoot(root, name string) (*os.File, error) {
	for range maxLinks {
		file, err := openAt(root, name, unix.O_PATH)
		if !errors.Is(err, os.ErrNotExist) {
			return file, err
		}
		above, base := path.Split(name)
		dir, err := dirInRoot(root, above)
		if err != nil {
			return nil, err
		}
		fd, err := unix.Openat(int(dir.Fd()), base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		target, linkErr := os.Readlink(inFD(dir) + "/" + base)
		dir.Close()
		switch {
		case err == nil:
			unix.Close(fd)
		case linkErr != nil:
			return nil, &os.PathError{Op: "make", Path: name, Err: err}
		case strings.HasPrefix(target, "/"):
			name = target
		default:
			name = above + target
		}
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: unix.ELOOP}
}

// deliver puts what comes to where a mount's content is.
func (s *processes) deliver(c *execConn, to string) {
	f := s.fn
	f.mu.Lock()
	at, ok := f.deliveries.at[path.Clean(to)]
	f.mu.Unlock()
	err := error(nil)
	if !ok {
		err = errors.New("nothing that the host delivers is mounted there")
	} else {
		err = at.unpack(&dataReader{c: c})
	}
	if err != nil {
		s.refuse(c, guest.RefusedOther, fmt.Errorf("delivering to %s: %w", to, err))
		return
	}
	_ = c.last(guest.KindCopied, nil) // else the host is gone
}
