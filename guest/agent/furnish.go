package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// furnish makes of the root what a container's specification wants beyond what a
// function has.
func furnish(s guest.Start) error {
	if s.IPv6 {
		if err := setUpIPv6(); err != nil {
			return err
		}
	}
	for name, value := range s.Sysctls {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	if err := showCPUs(s.CPUs); err != nil {
		return err
	}
	if err := hide(s, func(string) bool { return true }); err != nil {
		return err
	}
	if !s.ReadOnlyRoot {
		return nil
	}
	if s.Dir != "" { // made now if it is missing
		dir, _, err := workDir(root, s.Dir)
		if err != nil {
			return err
		}
		dir.Close()
	}
	if err := unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("making the root read-only: %w", err)
	}
	return nil
}

// setSysctl sets one of the kernel's parameters, by its name with dots or slashes.
func setSysctl(name, value string) error {
	path := strings.ReplaceAll(name, ".", "/")
	if strings.Contains(name, "/") {
		path = name
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("sysctl %q: no such name", name)
		}
	}
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil {
		return fmt.Errorf("setting sysctl %s: %w", name, err)
	}
	return nil
}

// mountFlags are the options that are flags of mount(2); "" are those that are
// there anyway or mean nothing here.
var mountFlags = map[string]uintptr{
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "ro": unix.MS_RDONLY, "noatime": unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "sync": unix.MS_SYNCHRONOUS,
	"rw": 0, "suid": 0, "dev": 0, "exec": 0, "async": 0, "defaults": 0,
	"private": 0, "rprivate": 0, "slave": 0, "rslave": 0, "shared": 0, "rshared": 0, "tmpcopyup": 0,
}

func tmpfsMount(t guest.Mount) (mount, error) {
	m := mount{source: "tmpfs", fstype: "tmpfs"}
	mode := uint32(0o1777)
	if t.Mode != 0 {
		mode = t.Mode
	}
	data := []string{fmt.Sprintf("mode=%o", mode)}
	if t.Bytes > 0 {
		data = append(data, fmt.Sprintf("size=%d", t.Bytes))
	}
	flags, rest := mountOptions(t.Options)
	for _, o := range rest {
		if o == "" || strings.Contains(o, ",") {
			return m, fmt.Errorf("option %q", o)
		}
	}
	m.flags, m.data = flags&^unix.MS_RDONLY, strings.Join(append(data, rest...), ",") // a later one counts
	return m, nil
}

// hide makes what the specification names read-only, or hides it, if which says so.
func hide(s guest.Start, which func(path string) bool) error {
	for _, path := range s.ReadonlyPaths {
		if !which(path) {
			continue
		}
		if err := makeReadonly(path); err != nil {
			return fmt.Errorf("making %s read-only: %w", path, err)
		}
	}
	for _, path := range s.MaskedPaths {
		if !which(path) {
			continue
		}
		if err := mask(path); err != nil {
			return fmt.Errorf("masking %s: %w", path, err)
		}
	}
	return nil
}

// mountOptions parts options into flags and the rest.
func mountOptions(options []string) (flags uintptr, rest []string) {
	for _, o := range options {
		if flag, ok := mountFlags[o]; ok {
			flags |= flag
		} else {
			rest = append(rest, o)
		}
	}
	return flags, rest
}

// makeReadonly lets nobody in the root write to what is at path.
func makeReadonly(path string) error {
	return covered(path, func(at string, _ os.FileInfo) error {
		return errors.Join(unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, ""), remountReadonly(path))
	})
}

// mask hides what is at path: behind nothing.
func mask(path string) error {
	return covered(path, func(at string, is os.FileInfo) error {
		if is.IsDir() {
			return unix.Mount("tmpfs", at, "tmpfs", unix.MS_RDONLY|quiet, "size=0k")
		}
		return unix.Mount("/dev/null", at, "", unix.MS_BIND, "")
	})
}

// covered calls f with a name of what is at path in the root, if anything is.
func covered(path string, f func(at string, is os.FileInfo) error) error {
	file, err := openAt(root, path, unix.O_PATH)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	is, err := os.Stat(inFD(file))
	if err != nil {
		return err
	}
	return f(inFD(file), is)
}

// remountReadonly opens path anew, so that what was mounted over it is meant.
func remountReadonly(path string) error {
	file, err := openAt(root, path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer file.Close()
	return restrict(file, unix.MS_RDONLY)
}
