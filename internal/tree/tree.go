// Package tree packs files and directories into tar streams and unpacks them,
// without leaving the directory that it is given: neither by a name, nor by a
// link that is there or comes with the stream, nor while somebody else changes
// what is in it. The agent and the command line copy with it; both take streams
// from whom they do not trust.
package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Pack writes what is at name in root, with all below it, where as is its name in
// the stream. Links are packed as links. Of what is neither a file, a directory
// nor a link nothing is written; when name itself is such it is an error. The
// stream has its end.
func Pack(root *os.Root, name, as string, to io.Writer) error {
	return PackChanged(root, name, as, nil, to)
}

// removed marks an entry that takes away what has its name.
const removed = "SKEP.removed"

// PackChanged is Pack for where an earlier stream was unpacked: what is gone of that,
// by its names in the stream, is to go there, too.
func PackChanged(root *os.Root, name, as string, gone []string, to io.Writer) error {
	p := packer{root: root, to: tar.NewWriter(to)}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !packed(info.Mode()) {
		return fmt.Errorf("%s is a %s: only files, directories and links are copied", name, kindOf(info.Mode()))
	}
	if err := p.add(name, as, info); err != nil {
		return err
	}
	for _, name := range gone { // last: a link may have led there until now
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{removed: "1"}, Format: tar.FormatPAX}
		if err := p.to.WriteHeader(&h); err != nil {
			return err
		}
	}
	return p.to.Close()
}

type packer struct {
	root *os.Root
	to   *tar.Writer
}

func packed(m fs.FileMode) bool { return m.IsRegular() || m.IsDir() || m&fs.ModeSymlink != 0 }

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	}
	return "device"
}

// add packs one name, which may be another thing by the time that it is opened:
// then it is packed as that, or an error.
func (p packer) add(name, as string, info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return p.addDir(name, as, info)
	case mode.IsRegular():
		return p.addFile(name, as)
	case mode&fs.ModeSymlink != 0:
		target, err := p.root.Readlink(name)
		if err != nil {
			return err
		}
		return p.head(info, target, as)
	}
	return nil
}

func (p packer) head(info fs.FileInfo, target, as string) error {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = as, "", "" // whose names mean nothing elsewhere
	h.Format = tar.FormatPAX              // for times and long names
	if info.IsDir() {
		h.Name += "/"
	}
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	return p.to.WriteHeader(h)
}

func (p packer) addDir(name, as string, info fs.FileInfo) error {
	if err := p.head(info, "", as); err != nil {
		return err
	}
	dir, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	// Links last: what one leads to, as the ..data of a config map does, is to be there.
	isLink := func(e fs.DirEntry) bool { return e.Type()&fs.ModeSymlink != 0 }
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int {
		switch {
		case isLink(a) == isLink(b):
			return 0
		case isLink(b):
			return -1
		}
		return 1
	})
	for _, e := range entries {
		below := path.Join(name, e.Name())
		info, err := p.root.Lstat(below)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has gone meanwhile
		}
		if err == nil {
			err = p.add(below, path.Join(as, e.Name()), info)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// addFile packs as many bytes as the file has when it is opened.
func (p packer) addFile(name, as string) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe may have taken its place
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	if err := p.head(info, "", as); err != nil {
		return err
	}
	n, err := io.CopyN(p.to, f, info.Size())
	if err == io.EOF {
		return fmt.Errorf("%s became shorter while it was read: %d of %d bytes are left", name, n, info.Size())
	}
	return err
}

// Options of Unpack.
type Options struct {
	// Rename returns the name under which an entry is unpacked; "" leaves it out.
	// nil: its own.
	Rename func(name string) string
	// Owner gives files the owner that the stream names, which takes root.
	Owner bool
	// Remove lets the stream take away what is there (PackChanged).
	Remove bool
	// InPlace has a file that is there be written to, so that it stays the one that
	// others have open, or mounted.
	InPlace bool
}

// Unpack puts what the stream holds below root, in its order. A file replaces one
// of its name at once, whole, unless that is mounted there: then it is written to; directories are made or kept. It refuses names and
// links that lead out of root, devices, pipes, and files that are packed as
// having holes, which could be larger than any disk. On an error, what has been
// put there stays.
func Unpack(root *os.Root, from io.Reader, o Options) error {
	u := unpacker{root: root, from: tar.NewReader(from), o: o}
	for {
		h, err := u.from.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("reading the tar stream: %w", err)
		}
		if err := u.add(h); err != nil {
			return err
		}
	}
}

type unpacker struct {
	root  *os.Root
	from  *tar.Reader
	o     Options
	count int
	dirs  []*tar.Header // made or kept, in order; their mode comes when they are full
}

func (u *unpacker) add(h *tar.Header) error {
	name := path.Clean(h.Name)
	if u.o.Rename != nil {
		if name = u.o.Rename(name); name == "" {
			return nil
		}
	}
	name = path.Clean(strings.TrimPrefix(name, "/"))
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			h.Typeflag = tar.TypeGNUSparse
		}
	}
	if h.PAXRecords[removed] != "" {
		if !u.o.Remove || name == "." {
			return fmt.Errorf("%s is to be removed: that was not asked for", h.Name)
		}
		return u.root.RemoveAll(name)
	}
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.replace(name, h, u.writeFile)
	case tar.TypeDir:
		if err := u.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		kept := *h
		kept.Name = name
		u.dirs = append(u.dirs, &kept)
		return nil
	case tar.TypeSymlink:
		return u.replace(name, h, func(temporary string, h *tar.Header) error { return u.root.Symlink(h.Linkname, temporary) })
	case tar.TypeLink:
		target := path.Clean(h.Linkname)
		if u.o.Rename != nil {
			target = u.o.Rename(target)
		}
		return u.replace(name, h, func(temporary string, _ *tar.Header) error {
			return u.root.Link(path.Clean(strings.TrimPrefix(target, "/")), temporary)
		})
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("%s is of tar type %q: only files without holes, directories and links are copied", h.Name, h.Typeflag)
}

// replace makes something under another name beside its own, and renames it.
func (u *unpacker) replace(name string, h *tar.Header, put func(temporary string, h *tar.Header) error) error {
	u.count++
	temporary := path.Join(path.Dir(name), ".skep-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(u.count)+"~")
	err := put(temporary, h)
	if err == nil {
		err = u.attributes(temporary, h)
	}
	there := false
	if err == nil && u.o.InPlace && h.Typeflag == tar.TypeReg {
		is, err := u.root.Lstat(name)
		there = err == nil && is.Mode().IsRegular()
	}
	if err == nil && !there {
		err = u.root.Rename(temporary, name)
		there = errors.Is(err, syscall.EBUSY) && h.Typeflag == tar.TypeReg
	}
	if there {
		err = u.overwrite(name, temporary, h)
	}
	if err != nil {
		_ = u.root.Remove(temporary)
	}
	return err
}

// overwrite puts what a temporary file has into one that no other can take the place
// of.
func (u *unpacker) overwrite(name, temporary string, h *tar.Header) error {
	from, err := u.root.Open(temporary)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := u.root.OpenFile(name, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	return errors.Join(u.attributes(name, h), u.root.Remove(temporary))
}

func (u *unpacker) writeFile(temporary string, h *tar.Header) error {
	f, err := u.root.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, u.from)
	return errors.Join(err, f.Close())
}

// attributes sets owner, mode and time, in this order: a change of owner takes
// away the set-user-ID bit.
func (u *unpacker) attributes(name string, h *tar.Header) error {
	if u.o.Owner && h.Typeflag != tar.TypeLink {
		if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
		return nil
	}
	if err := u.root.Chmod(name, mode(h)); err != nil {
		return err
	}
	return u.root.Chtimes(name, time.Time{}, h.ModTime)
}

// mode is what FileInfo of the header says of permissions.
func mode(h *tar.Header) fs.FileMode {
	return h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// finish sets the attributes of directories, the deepest first: one that may not
// be written to had to be filled before.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if h := u.dirs[i]; h.Name != "." { // the directory itself is whose it was
			if err := u.attributes(h.Name, h); err != nil {
				return err
			}
		}
	}
	return nil
}
