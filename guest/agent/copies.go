package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tree"
)

// copyRoot is the function's root, once there is one.
func (s *processes) copyRoot() (string, error) {
	f := s.fn
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.started {
		return "", errors.New("this guest was not started yet: it has no files")
	}
	return f.root, nil
}

// copyIn unpacks what comes below a directory.
func (s *processes) copyIn(c *execConn, to string) {
	base, err := s.copyRoot()
	if err == nil {
		err = unpack(base, to, &dataReader{c: c})
	}
	if err != nil {
		s.refuse(c, guest.RefusedOther, fmt.Errorf("copying to %s: %w", to, err))
		return
	}
	_ = c.last(guest.KindCopied, nil) // else the host is gone
}

func unpack(root, to string, data io.Reader) error {
	dir, err := dirInRoot(root, to)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unpackBelow(dir, data, tree.Options{Owner: true})
}

// unpack puts what comes in the place of what was delivered before.
func (d delivery) unpack(data io.Reader) error {
	err := unpackBelow(d.dir, data, tree.Options{Owner: true, Remove: true, InPlace: d.file, Rename: func(name string) string {
		if rest, ok := strings.CutPrefix(name, guest.Delivered); ok && (rest == "" || rest[0] == '/') {
			return d.name + rest
		}
		return ""
	}})
	if err != nil {
		return err
	}
	return d.prune()
}

func unpackBelow(dir *os.File, data io.Reader, o tree.Options) error {
	below, err := os.OpenRoot(inFD(dir))
	if err != nil {
		return err
	}
	defer below.Close()
	if err := tree.Unpack(below, data, o); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, data) // padding behind the archive's end
	return err
}

// dataReader reads the bytes in the host's data frames, until its eof.
type dataReader struct {
	c    *execConn
	buf  []byte
	rest []byte
	over bool
}

func (r *dataReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.over {
			return 0, io.EOF
		}
		k, b, err := guest.ReadFrame(r.c.Conn, guest.FromExecHost, r.buf)
		if err != nil {
			return 0, errors.Join(io.ErrUnexpectedEOF, err)
		}
		if len(b) > len(r.buf) {
			r.buf = b
		}
		switch k {
		case guest.KindData:
			r.rest = b
		case guest.KindEOF:
			r.over = true
		default:
			return 0, fmt.Errorf("a frame of kind %d in a copy", k)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// copyOut sends what is at a path. A link in the way is followed within the root,
// the last name is not.
func (s *processes) copyOut(c *execConn, from string) {
	base, err := s.copyRoot()
	if err == nil {
		err = pack(base, from, &dataWriter{c: c})
	}
	if err != nil {
		s.refuse(c, guest.RefusedOther, fmt.Errorf("copying %s: %w", from, err))
		return
	}
	_ = c.last(guest.KindCopied, nil) // else the host is gone
}

func pack(root, from string, to io.Writer) error {
	clean := path.Clean("/" + from)
	name := path.Base(clean)
	if strings.HasSuffix(from, "/") || strings.HasSuffix(from, "/.") || clean == "/" {
		name = "." // what a link leads to, then
	}
	dir := path.Dir(clean)
	if name == "." {
		dir = clean
	}
	at, err := openAt(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer at.Close()
	below, err := os.OpenRoot(inFD(at))
	if err != nil {
		return err
	}
	defer below.Close()
	return tree.Pack(below, name, path.Base(clean), to)
}

// dataWriter writes data frames.
type dataWriter struct {
	c   *execConn
	buf []byte
}

func (w *dataWriter) Write(p []byte) (n int, err error) {
	if w.buf == nil {
		w.buf = make([]byte, guest.HeadLen+passBytes)
	}
	for len(p) > 0 {
		k := copy(w.buf[guest.HeadLen:], p)
		if err := w.c.filled(guest.KindData, w.buf[:guest.HeadLen+k]); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}
