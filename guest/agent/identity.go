package agent

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// identityDir has the files that tell the function which instance it is. They
// are mounted over the image's own, as a container's runtime does, so that a
// clone writes a few bytes to files that are open, instead of going through the
// function's file system.
const identityDir = "/identity"

// maxIdentity bounds the length of such a file in bytes. In one that the
// function has made longer, the name is not changed.
const maxIdentity = 8 << 10

// names are the files in which an instance's name stands.
type names struct {
	files    []*os.File
	instance string
	buf      []byte // maxIdentity; made ahead, since clones pay for memory that is new
}

// writeEtc writes what a container's runtime would put into /etc, and
// /run/skep/instance.
func writeEtc(s guest.Start) (*names, error) {
	resolv := ""
	for _, n := range s.Nameservers {
		resolv += "nameserver " + n + "\n"
	}
	if err := os.MkdirAll(identityDir, 0o755); err != nil {
		return nil, err
	}
	n := &names{instance: s.Instance, buf: make([]byte, maxIdentity)}
	for _, f := range []struct{ path, content string }{
		{"/etc/hosts", "127.0.0.1\tlocalhost\n" + guest.Address.String() + "\t" + s.Instance + "\n"},
		{"/etc/hostname", s.Instance + "\n"},
		{"/run/skep/instance", s.Instance + "\n"},
		{"/etc/resolv.conf", resolv},
	} {
		file, err := cover(f.path, f.content)
		if err != nil {
			return nil, fmt.Errorf("writing the function's %s: %w", f.path, err)
		}
		if s.Instance != "" && strings.Contains(f.content, s.Instance) {
			n.files = append(n.files, file)
		} else if err := file.Close(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// cover makes a file and mounts it over a path in the function's root. What the
// image has there, a link for instance, is replaced and not followed.
func cover(name, content string) (*os.File, error) {
	source := filepath.Join(identityDir, path.Base(name))
	f, err := os.OpenFile(source, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(content); err != nil {
		return nil, err
	}
	dir, err := dirInRoot(root, path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.RemoveAll(inFD(dir) + "/" + path.Base(name)); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	target := os.NewFile(uintptr(fd), name)
	defer target.Close()
	return f, unix.Mount(source, inFD(target), "", unix.MS_BIND, "")
}

// change puts another name in the place of the old one, wherever that stands,
// and leaves what else the function may have written.
func (n *names) change(instance string) error {
	for _, f := range n.files {
		if err := replace(f, n.buf, n.instance, instance); err != nil {
			return fmt.Errorf("renaming the instance in %s: %w", f.Name(), err)
		}
	}
	n.instance = instance
	return nil
}

// replace reads the file into buf, and writes it with another name. It makes
// two system calls when both names are of one length, as those of instances are.
func replace(f *os.File, buf []byte, old, name string) error {
	fd := int(f.Fd())
	n, err := unix.Pread(fd, buf, 0)
	if err != nil || n == len(buf) || old == "" {
		return err
	}
	changed := buf[:n]
	if len(old) == len(name) {
		for at := changed; ; {
			i := bytes.Index(at, []byte(old))
			if i < 0 {
				break
			}
			copy(at[i:], name)
			at = at[i+len(name):]
		}
	} else {
		changed = bytes.ReplaceAll(changed, []byte(old), []byte(name))
	}
	if _, err := unix.Pwrite(fd, changed, 0); err != nil {
		return err
	}
	if len(changed) == n {
		return nil
	}
	return f.Truncate(int64(len(changed)))
}
