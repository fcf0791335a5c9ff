package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	"github.com/containerd/fifo"
)

// stdio is where a process's input comes from and its output goes: named pipes,
// files or a logging program, as containerd names them.
type stdio struct {
	input          string    // the named pipe of stdin; "" for none
	stdout, stderr io.Writer // nil: nowhere
	closers        []io.Closer

	mu     sync.Mutex    // guards what follows
	stdin  io.ReadCloser // nil until openStdin
	hold   io.Closer     // the writing end of stdin
	noMore bool          // closeStdin was called

	once   sync.Once
	closed chan struct{} // closed when all is
}

func newStdio(input string) *stdio { return &stdio{input: input, closed: make(chan struct{})} }

// openStdio opens what a client has named. With a terminal there is no stderr.
func openStdio(ctx context.Context, id, stdin, stdout, stderr string, tty bool) (_ *stdio, err error) {
	s := newStdio(stdin)
	defer func() {
		if err != nil {
			s.close()
			err = fmt.Errorf("opening the process's input and output: %w", err)
		}
	}()
	if u, err := url.Parse(stdout); err == nil && (u.Scheme == "binary" || u.Scheme == "binary-v2") {
		return s, s.program(ctx, id, u)
	}
	if s.stdout, err = s.output(ctx, stdout); err != nil {
		return nil, err
	}
	switch {
	case tty:
	case stderr == stdout:
		s.stderr = s.stdout
	default:
		if s.stderr, err = s.output(ctx, stderr); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openStdin opens the input, when the process is started: a client that has
// written all before it knows of the task would not say so. It is idempotent.
func (s *stdio) openStdin(ctx context.Context) (err error) {
	s.mu.Lock()
	is := s.stdin != nil
	s.mu.Unlock()
	if s.input == "" || is {
		return nil
	}
	// Its end is read when no writer is left, which the shim is until it is told
	// that the client has written all.
	hold, err := fifo.OpenFifo(ctx, s.input, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	stdin, err := fifo.OpenFifo(ctx, s.input, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return errors.Join(err, hold.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stdin, s.hold = stdin, hold
	if s.noMore {
		s.hold.Close()
	}
	return nil
}

// output opens a place for output: a named pipe, or a file to append to.
func (s *stdio) output(ctx context.Context, name string) (io.Writer, error) {
	if name == "" {
		return nil, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "", "fifo":
	case "file":
		if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, f)
		return &outlet{to: f}, nil
	default:
		return nil, fmt.Errorf("output to %q: want a named pipe, file://… or binary://…", name)
	}
	if is, err := fifo.IsFifo(u.Path); err != nil || !is {
		f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, f)
		return &outlet{to: f}, nil
	}
	w, err := fifo.OpenFifo(ctx, u.Path, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// A reader of our own: when containerd goes and comes back, what is written
	// meanwhile waits in the pipe.
	r, err := fifo.OpenFifo(ctx, u.Path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	s.closers = append(s.closers, w, r)
	return &outlet{to: w}, nil
}

// outlet drops what cannot be written any more, on a full disk or to a program that has
// ended: a process does not end since nobody takes what it says.
type outlet struct {
	to   io.Writer
	deaf atomic.Bool
}

func (o *outlet) Write(p []byte) (int, error) {
	if !o.deaf.Load() {
		if _, err := o.to.Write(p); err != nil && !o.deaf.Swap(true) && !errors.Is(err, os.ErrClosed) {
			logLine("dropping what a process writes: %v", err)
		}
	}
	return len(p), nil
}

// program starts a program that gets the output.
func (s *stdio) program(ctx context.Context, id string, u *url.URL) error {
	b, err := process.NewBinaryIO(ctx, id, u)
	if err != nil {
		return fmt.Errorf("starting %s: %w", u, err)
	}
	cmd := &exec.Cmd{}
	b.Set(cmd)
	s.stdout, s.stderr = &outlet{to: cmd.Stdout}, &outlet{to: cmd.Stderr}
	s.closers = append(s.closers, b)
	return nil
}

// closeStdin says that no client will write any more. It is idempotent.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil && !s.noMore {
		s.hold.Close()
	}
	s.noMore = true
}

// close closes all. It is idempotent.
func (s *stdio) close() {
	s.once.Do(func() {
		s.closeStdin()
		s.mu.Lock()
		if s.stdin != nil {
			s.stdin.Close()
		}
		s.mu.Unlock()
		for _, c := range s.closers {
			c.Close()
		}
		close(s.closed)
	})
}
