package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

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

// names are the files in which stands what the machine is called, open.
type names struct {
	hosts, host, id, resolv *os.File
	instance, hostname      string
	buf                     []byte // maxIdentity; made ahead, since clones pay for memory that is new
}

// hostname is what the machine is called.
func hostname(instance string, n guest.Names) string { return cmp.Or(n.Hostname, instance) }

// newNames writes /run/skep/instance.
func newNames(s guest.Start) (*names, error) {
	if err := os.MkdirAll(identityDir, 0o755); err != nil {
		return nil, err
	}
	n := &names{instance: s.Instance, hostname: hostname(s.Instance, s.Names), buf: make([]byte, maxIdentity)}
	return n, write(&n.id, "/run/skep/instance", s.Instance+"\n")
}

// writeEtc writes what a container's runtime would put into /etc.
func (n *names) writeEtc(s guest.Start) error {
	resolv := ""
	for _, server := range s.Nameservers {
		resolv += "nameserver " + server + "\n"
	}
	return errors.Join(
		write(&n.hosts, "/etc/hosts", cmp.Or(s.Hosts, "127.0.0.1\tlocalhost\n"+guest.Address.String()+"\t"+n.hostname+"\n")),
		write(&n.host, "/etc/hostname", n.hostname+"\n"),
		write(&n.resolv, "/etc/resolv.conf", cmp.Or(s.Resolv, resolv)))
}

func write(to **os.File, path, content string) (err error) {
	if *to, err = cover(path, content); err != nil {
		return fmt.Errorf("writing the function's %s: %w", path, err)
	}
	return nil
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

// change gives the machine other names: files whose text is given are written
// anew, in the others another name is put in the place of the old one, wherever
// that stands, and what else the function may have written is left.
func (n *names) change(instance string, to guest.Names) error {
	name := hostname(instance, to)
	for _, c := range []struct {
		file           *os.File
		old, new, text string
	}{
		{n.hosts, n.hostname, name, to.Hosts},
		{n.host, n.hostname, name, ""},
		{n.id, n.instance, instance, ""},
	} {
		if err := n.rewrite(c.file, c.old, c.new, c.text); err != nil {
			return fmt.Errorf("renaming the instance in %s: %w", c.file.Name(), err)
		}
	}
	n.instance, n.hostname = instance, name
	if to.Resolv == "" {
		return nil
	}
	return n.rewrite(n.resolv, "", "", to.Resolv)
}

func (n *names) rewrite(f *os.File, old, name, text string) error {
	if text == "" {
		return replace(f, n.buf, old, name)
	}
	if _, err := unix.Pwrite(int(f.Fd()), []byte(text), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
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
