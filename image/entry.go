package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// entryWriter writes the entries that become a disk.
type entryWriter struct {
	ctx   context.Context
	tar   *tar.Writer
	count *counter
	buf   []byte
}

func newEntryWriter(ctx context.Context, w *tar.Writer, count *counter) *entryWriter {
	return &entryWriter{ctx, w, count, make([]byte, 128<<10)}
}

// copy writes an entry under a path, with what of its header a disk keeps.
func (w *entryWriter) copy(name string, h *tar.Header, r io.Reader) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX,
	}
	setTime(out, h.ModTime)
	if h.Typeflag == tar.TypeGNUSparse {
		out.Typeflag = tar.TypeReg
	}
	if out.Typeflag == tar.TypeReg {
		out.Size = h.Size
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, paxXattr); ok {
			if err := setXattr(out, x, v); err != nil {
				return fmt.Errorf("entry %q: %w", name, err)
			}
		}
	}
	err := w.tar.WriteHeader(out)
	if err == nil && out.Size > 0 {
		// Neither side may copy in a way of its own: those make a buffer for each file.
		_, err = io.CopyBuffer(struct{ io.Writer }{w.tar}, &countingReader{w.ctx, r, w.count}, w.buf)
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", name, err)
	}
	return nil
}

// link writes a name as one more of a file that was written.
func (w *entryWriter) link(name, to string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to})
}

// setTime gives all times of a file the one that archives keep, within what the
// disk's writer gets right: 1970 to 2038.
func setTime(h *tar.Header, t time.Time) {
	const last = 1<<31 - 1
	switch s := t.Unix(); {
	case t.IsZero() || s < 0:
		t = time.Unix(0, 0)
	case s > last:
		t = time.Unix(last, 0)
	}
	h.ModTime, h.AccessTime, h.ChangeTime = t, t, t
}

// paxXattr begins the PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// setXattr gives an entry an extended attribute, in the form in which the disk
// keeps it, if it is one that means something in a guest.
func setXattr(h *tar.Header, name, value string) error {
	switch {
	case name == "security.selinux", name == "security.evm", name == "security.ima":
		return nil // labels and signatures of the system that it was made on
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		return nil // would be orders to the guest's own overlay
	case strings.HasPrefix(name, "system.posix_acl_"):
		disk, err := diskACL([]byte(value))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		value = string(disk)
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "security."), strings.HasPrefix(name, "trusted."):
	default:
		return nil // of another operating system
	}
	if h.PAXRecords == nil {
		h.PAXRecords = map[string]string{}
	}
	h.PAXRecords[paxXattr+name] = value
	return nil
}

// diskACL turns an access control list as system calls show it (version 2, each
// entry with an id) into one as ext4 keeps it (version 1, an id only where it
// says something).
func diskACL(b []byte) ([]byte, error) {
	const (
		header, entry = 4, 8
		user, group   = 2, 8 // tags of entries that name somebody
	)
	le := binary.LittleEndian
	if len(b) < header || (len(b)-header)%entry != 0 || le.Uint32(b) != 2 {
		return nil, errors.New("it is no access control list of Linux")
	}
	var out bytes.Buffer
	out.Write([]byte{1, 0, 0, 0})
	for e := b[header:]; len(e) > 0; e = e[entry:] {
		out.Write(e[:4])
		if tag := le.Uint16(e); tag == user || tag == group {
			out.Write(e[4:8])
		}
	}
	return out.Bytes(), nil
}
