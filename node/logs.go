package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
)

// logStore keeps what functions write, in logs/<function>/log and log.1: one
// line each with time, instance, stream and invocation before it. When log has half of what
// a function may have on disk it becomes log.1.
type logStore struct {
	dir string
	max int64 // bytes of each function

	mu   sync.Mutex // guards open and the users of each
	open map[string]*functionLog
}

// functionLog is one function's log while someone writes or follows it.
type functionLog struct {
	store *logStore
	name  string
	users int

	mu      sync.Mutex // guards what follows
	file    *os.File
	size    int64
	broken  bool          // it could not be written: said once
	changed chan struct{} // closed and replaced when something was written
}

const maxLogLine = 64 << 10 // bytes; what is longer is cut

func newLogStore(dir string, max int64) *logStore {
	return &logStore{dir: dir, max: max, open: map[string]*functionLog{}}
}

func (s *logStore) get(function string) *functionLog {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.open[function]
	if l == nil {
		l = &functionLog{store: s, name: function, changed: make(chan struct{})}
		s.open[function] = l
	}
	l.users++
	return l
}

func (s *logStore) put(l *functionLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	delete(s.open, l.name)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// remove deletes a function's log.
func (s *logStore) remove(function string) error { return os.RemoveAll(filepath.Join(s.dir, function)) }

// removeOthers deletes the logs of functions that are not there any more.
func (s *logStore) removeOthers(pools map[string]*pool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("looking at the logs: %w", err)
	}
	for _, e := range entries {
		if pools[e.Name()] == nil && e.IsDir() {
			if err := s.remove(e.Name()); err != nil {
				return fmt.Errorf("removing the log of a removed function: %w", err)
			}
		}
	}
	return nil
}

func (s *logStore) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, l := range s.open {
		l.mu.Lock()
		if l.file != nil {
			err = errors.Join(err, l.file.Close())
			l.file = nil
		}
		l.broken = true
		l.mu.Unlock()
	}
	return err
}

func (l *functionLog) path(name string) string { return filepath.Join(l.store.dir, l.name, name) }

// write appends a line. A log that cannot be written must not stop the
// function: its lines are lost until it can.
func (l *functionLog) write(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return
	}
	if err := l.append(line); err != nil && l.file != nil {
		l.file.Close()
		l.file = nil // opened anew for the next line
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *functionLog) append(line []byte) error {
	if l.file == nil {
		if err := os.MkdirAll(filepath.Dir(l.path("log")), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(l.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		l.file, l.size = f, info.Size()
	}
	if l.size > 0 && l.size+int64(len(line)) > l.store.max/2 {
		l.file.Close()
		l.file = nil
		if err := os.Rename(l.path("log"), l.path("log.1")); err != nil {
			return err
		}
		return l.append(line)
	}
	k, err := l.file.Write(line)
	l.size += int64(k)
	return err
}

// logWriter is one instance's way to its function's log. Its write is not for
// several goroutines at once.
type logWriter struct {
	log      *functionLog
	instance string
	buf      []byte
	once     sync.Once
}

func (s *logStore) writer(function, instance string) *logWriter {
	return &logWriter{log: s.get(function), instance: instance}
}

func (w *logWriter) write(stream, invocation string, line []byte) {
	line = line[:min(len(line), maxLogLine)]
	b := time.Now().UTC().AppendFormat(w.buf[:0], logTime)
	b = append(append(append(b, ' '), w.instance...), ' ')
	b = append(append(b, stream...), ' ')
	b = append(append(b, orDefault(invocation, "-")...), ' ')
	b = append(append(b, bytes.ReplaceAll(line, []byte{'\n'}, []byte{' '})...), '\n')
	w.buf = b
	w.log.write(b)
}

// tell adds a line of skep's own, in brackets as those of the guest's session.
func (s *logStore) tell(function, instance, invocation, text string) {
	w := s.writer(function, instance)
	defer w.close()
	w.write("stderr", invocation, fmt.Appendf(nil, "[%s]", text))
}

func (w *logWriter) close() { w.once.Do(func() { w.log.store.put(w.log) }) }

// Logs writes what is kept of a function's log, as far as the query selects it,
// to w, and then, with Follow, what is added until ctx ends.
func (n *Node) Logs(ctx context.Context, q api.LogQuery, w io.Writer) error {
	p := n.pool(q.Function)
	if p == nil {
		return fmt.Errorf("%q: %w", q.Function, ErrNoFunction)
	}
	l := n.logs.get(q.Function)
	defer n.logs.put(l)
	fail := func(err error) error { return fmt.Errorf("reading the log of %q: %w", q.Function, err) }
	out := newLogFilter(w, q)
	f, err := l.copyKept(out)
	r := logReader{log: l, file: f}
	defer r.close()
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		return fail(err)
	}
	for q.Follow {
		changed, err := r.copy(out)
		if err != nil {
			return fail(err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-n.drain:
			return nil
		}
		if p.current.Load() == nil {
			return nil // removed
		}
	}
	return nil
}

// copyKept writes all that is kept and returns the newest file, read to where
// that ends; nil when there is none.
func (l *functionLog) copyKept(w io.Writer) (*os.File, error) {
	l.mu.Lock() // so that no rotation comes between the two files
	old, err1 := os.Open(l.path("log.1"))
	cur, err2 := os.Open(l.path("log"))
	l.mu.Unlock()
	if err1 == nil {
		defer old.Close()
	}
	for _, err := range []error{err1, err2} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return cur, err
		}
	}
	for _, f := range []*os.File{old, cur} {
		if f == nil {
			continue
		}
		if _, err := io.Copy(w, f); err != nil {
			return cur, err
		}
	}
	return cur, nil
}

// logReader follows a log through its rotations.
type logReader struct {
	log  *functionLog
	file *os.File // nil: from the beginning of the next
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// copy writes what is new, and returns a channel that is closed when there may
// be more.
func (r *logReader) copy(w io.Writer) (<-chan struct{}, error) {
	r.log.mu.Lock()
	changed := r.log.changed
	r.log.mu.Unlock()
	for {
		if r.file != nil {
			if _, err := io.Copy(w, r.file); err != nil {
				return nil, err
			}
		}
		now, err := os.Open(r.log.path("log"))
		if errors.Is(err, fs.ErrNotExist) {
			return changed, nil
		}
		if err != nil {
			return nil, err
		}
		if r.file != nil && sameFile(r.file, now) {
			now.Close()
			return changed, nil
		}
		if r.file != nil {
			// It was rotated: what came between the copy and now is still in it.
			if _, err := io.Copy(w, r.file); err != nil {
				now.Close()
				return nil, err
			}
			r.file.Close()
		}
		r.file = now
	}
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
