package shim

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// Where the kubelet keeps what may be secret, or differs between the pods of one
// specification; of a part of a volume nobody can tell which kind that is.
var lateSources = []string{"/volumes/kubernetes.io~secret/", "/volumes/kubernetes.io~projected/", "/volumes/kubernetes.io~csi/",
	"/volumes/kubernetes.io~downward-api/", "/volume-subpaths/"}

// late are the mounts whose content may not be in a snapshot, prompt the others that
// are delivered.
func (c container) late() []mount {
	return slices.DeleteFunc(c.delivered(), func(m mount) bool { return !isLate(m) })
}

func (c container) prompt() []mount { return slices.DeleteFunc(c.delivered(), isLate) }

func isLate(m mount) bool {
	for _, dir := range []string{"/run/secrets", "/var/run/secrets"} {
		if m.Path == dir || strings.HasPrefix(m.Path, dir+"/") {
			return true
		}
	}
	return slices.ContainsFunc(lateSources, func(part string) bool { return strings.Contains(m.Source+"/", part) })
}

// withhold puts files into the guest that have nothing in them yet, and has the agent
// notice when one is opened: what a process makes of an empty one is not to be in a
// snapshot.
func (r *room) withhold(ctx context.Context, m mount) error {
	err := send(ctx, r.dial, m, nil, hollow)
	if err == nil {
		err = r.watchFiles(ctx, m.Path)
	}
	if err != nil {
		return fmt.Errorf("mount at %s: %w", m.Path, err)
	}
	return nil
}

func (r *room) watchFiles(ctx context.Context, path string) error {
	conn, err := r.dial(ctx)
	if err != nil {
		return err
	}
	return guest.Watch(ctx, conn, path)
}

// asked says that a process has opened what was withheld.
func (r *room) asked(ctx context.Context) bool {
	var refused *guest.RefusedError
	return errors.As(r.watchFiles(ctx, ""), &refused) && refused.Why == guest.RefusedOpened
}

// deliverLate gives a guest, whose process stands still, the content of what was withheld
// from its snapshot. What is small comes with the message that makes it a clone: to take
// a connection of its own costs a guest that was just restored several times as much.
func (r *room) deliverLate(ctx context.Context) error {
	var large []mount
	r.small = nil
	room := guest.MaxCloneFiles
	for _, m := range r.container.late() {
		files, err := filesOf(m, room)
		if err != nil {
			large = append(large, m) // or such that delivering it says what is wrong
			continue
		}
		r.small = append(r.small, m)
		room -= guest.FilesLen(files)
	}
	return r.fresh.deliver(ctx, r.dial, large)
}

// clonesFiles are what comes with the clone message, as they are now.
func (r *room) clonesFiles() (all []guest.File, err error) {
	err = r.fresh.each(r.small, func(m mount, _ content) error {
		files, err := filesOf(m, guest.MaxCloneFiles-guest.FilesLen(all))
		all = append(all, files...)
		return err
	})
	return all, err
}

var errLarge = errors.New("it has more than comes with a clone message")

// filesOf are the files of a mount, by their paths in the container, if they take no more
// than that: those that a kubelet's links lead to, and others. Other links are in the
// guest as they are.
func filesOf(m mount, most int) ([]guest.File, error) {
	source, err := filepath.EvalSymlinks(m.Source)
	if err != nil {
		return nil, err
	}
	is, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	dir, name := source, "."
	if !is.IsDir() {
		dir, name = filepath.Split(source)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	s := smallFiles{root: root, most: most}
	err = s.add(name, m.Path)
	return s.all, err
}

// smallFiles reads files below root, until there are too many.
type smallFiles struct {
	root *os.Root
	most int
	all  []guest.File
}

func (s *smallFiles) add(name, as string) error {
	is, err := s.root.Lstat(name)
	if err != nil {
		return err
	}
	if is.Mode()&fs.ModeSymlink != 0 {
		target, err := s.root.Readlink(name)
		if err != nil || !strings.HasPrefix(target, dataLink) {
			return err
		}
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe that nobody writes to holds up nobody
	if err != nil {
		return err
	}
	defer f.Close()
	if is, err = f.Stat(); err != nil {
		return err
	}
	if !is.IsDir() && !is.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a directory", name)
	}
	if is.IsDir() {
		entries, err := f.ReadDir(-1)
		for _, e := range entries {
			if err == nil && !strings.HasPrefix(e.Name(), "..") {
				err = s.add(filepath.Join(name, e.Name()), path.Join(as, e.Name()))
			}
		}
		return err
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(s.most)+1))
	s.all = append(s.all, guest.File{Path: as, Data: data})
	if err == nil && guest.FilesLen(s.all) > s.most {
		err = errLarge
	}
	return err
}

// hollow passes on a tar stream without what is in its files.
func hollow(from io.Reader, to io.Writer) error {
	r, w := tar.NewReader(from), tar.NewWriter(to)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return w.Close()
		}
		if err != nil {
			return err
		}
		h.Size = 0
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
}

// maxHeld bounds what is held of a process's output, in bytes.
const maxHeld = 256 << 10

// held keeps what a process writes until it is known whether that counts, or is too
// much.
type held struct {
	flushed chan struct{} // closed when what was held is written; after open

	mu     sync.Mutex // guards what follows
	pieces []piece
	bytes  int
	open   bool // nothing is held any more
}

func newHeld() *held { return &held{flushed: make(chan struct{})} }

type piece struct {
	to   io.Writer
	data []byte
}

// writer writes to w, once that counts.
func (h *held) writer(w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return heldWriter{h, w}
}

type heldWriter struct {
	h  *held
	to io.Writer
}

func (w heldWriter) Write(p []byte) (int, error) {
	if w.h.add(w.to, p) {
		return len(p), nil
	}
	<-w.h.flushed
	return w.to.Write(p)
}

// add holds a piece; false: nothing is held any more.
func (h *held) add(to io.Writer, p []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open && h.bytes+len(p) > maxHeld {
		h.flush()
	}
	if h.open {
		return false
	}
	h.pieces, h.bytes = append(h.pieces, piece{to, slices.Clone(p)}), h.bytes+len(p)
	return true
}

// release passes on what is held, and all that comes. It does not wait for who takes it.
func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flush()
}

// flush has what is held be written. The mutex is held.
func (h *held) flush() {
	if h.open {
		return
	}
	h.open = true
	pieces := h.pieces
	h.pieces = nil
	go func() { // ends with the streams
		defer close(h.flushed)
		for _, p := range pieces {
			_, _ = p.to.Write(p.data) // nobody reads it any more, then
		}
	}()
}
