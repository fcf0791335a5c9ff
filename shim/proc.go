package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// proc is a process of a container: its own, or one that was asked for later.
type proc struct {
	id                    string // as containerd names it; "" is the container's own
	spec                  guest.Process
	stdin, stdout, stderr string
	io                    *stdio
	done                  chan struct{} // closed when it has ended
	hurry                 chan struct{} // closed when it was sent something before it ran
	mu                    sync.Mutex    // guards what follows
	running               *guest.Running
	next                  chan struct{}  // closed when running is another
	last                  *guest.Running // that was begun, running or not
	noInput               bool           // it has had all
	starting, started     bool
	waiting               []signalled // what it was sent before it ran
	rows, cols            uint16      // of its terminal, when it was told before its start
	resized               bool
	finishing             bool // guarded by the room's mutex
	code                  int
	ended                 time.Time
}

type signalled struct {
	number uint32
	to     guest.SignalTo
}

// killed is the exit code of what a signal has ended.
func killed(s unix.Signal) int { return 128 + int(s) }

func newProc(id string, spec guest.Process, stdin, stdout, stderr string) *proc {
	p := &proc{id: id, spec: spec, stdin: stdin, stdout: stdout, stderr: stderr, done: make(chan struct{}), hurry: make(chan struct{})}
	p.spec.ID = "init"
	if id != "" {
		p.spec.ID = "exec-" + id
	}
	p.spec.Stdin = stdin != ""
	p.spec.Keep = true // it is the container's, not a connection's
	p.next = make(chan struct{})
	return p
}

var (
	errStarted    = errors.New("it was started already")
	errNotStarted = errors.New("it was not started")
	errEnded      = errors.New("it has ended")
)

// start runs it in the guest that dial reaches.
func (p *proc) start(ctx context.Context, dial dialer) error {
	if err := p.reserve(); err != nil {
		return err
	}
	r, err := p.run(ctx, dial, p.spec, p.io.stdout, p.io.stderr)
	if err != nil {
		return err
	}
	p.adopt(r)
	return nil
}

// reserve makes sure that it is started once.
func (p *proc) reserve() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.hasEnded():
		return errEnded
	case p.starting:
		return errStarted
	}
	p.starting = true
	if p.resized {
		p.spec.Rows, p.spec.Cols = p.rows, p.cols
	}
	return nil
}

// run runs it as spec says, with output to there.
func (p *proc) run(ctx context.Context, dial dialer, spec guest.Process, stdout, stderr io.Writer) (*guest.Running, error) {
	if err := p.io.openStdin(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("opening its input: %w", err)
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling the guest's agent: %w", err)
	}
	r, err := guest.Exec(ctx, conn, spec, p.after(stdout), p.after(stderr))
	p.begun(r)
	return r, err
}

// attach finds it where it runs already.
func (p *proc) attach(ctx context.Context, dial dialer) (*guest.Running, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling the guest's agent: %w", err)
	}
	r, err := guest.Attach(ctx, conn, p.spec.ID, p.after(p.io.stdout), p.after(p.io.stderr))
	p.begun(r)
	return r, err
}

func (p *proc) begun(r *guest.Running) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r != nil {
		p.last = r
	}
}

// after is w for who comes after what has come already, which may wait for its reader.
func (p *proc) after(w io.Writer) io.Writer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || w == nil {
		return w
	}
	return afterWriter{p.last.Passed(), w}
}

type afterWriter struct {
	first <-chan struct{}
	io.Writer
}

func (w afterWriter) Write(p []byte) (int, error) {
	<-w.first
	return w.Writer.Write(p)
}

// adopt makes what runs the process.
func (p *proc) adopt(r *guest.Running) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.running == nil
	p.running, p.started = r, true
	close(p.next)
	p.next = make(chan struct{})
	for _, s := range p.waiting {
		_ = r.Signal(int(s.number), s.to) // else it has ended
	}
	p.waiting = nil
	switch {
	case first && p.io.stdin != nil:
		go p.feed()
	case p.noInput:
		_ = r.CloseStdin() // else it has ended
	}
}

// goesOn notes that it runs, though nobody is attached to it yet: wait does that.
func (p *proc) goesOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = true
}

// feed passes input on until its end or the process's.
func (p *proc) feed() {
	_, err := io.CopyBuffer(inputWriter{p}, struct{ io.Reader }{p.io.stdin}, make([]byte, 32<<10))
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noInput = true
	_ = p.running.CloseStdin() // else it has ended
}

// inputWriter is the process's stdin, over whichever connection there is.
type inputWriter struct{ p *proc }

func (w inputWriter) Write(b []byte) (written int, err error) {
	for {
		w.p.mu.Lock()
		r, next := w.p.running, w.p.next
		w.p.mu.Unlock()
		n, err := r.Write(b)
		written, b = written+n, b[n:]
		if err == nil {
			return written, nil
		}
		select {
		case <-next:
		case <-w.p.done:
			return written, err
		}
	}
}

// maxLost bounds how often a process's connection may be lost, reattachPause is how
// long a guest is left alone that cannot be reached.
const (
	maxLost       = 16
	reattachPause = 200 * time.Millisecond
)

// wait waits for the end of a process that was started, in a guest that is there until
// ctx ends. Where just the connection does, it is made anew: the guest tells of the end
// until that has been noted.
func (p *proc) wait(ctx context.Context, dial dialer) (guest.ProcessExit, error) {
	p.mu.Lock()
	r := p.running
	p.mu.Unlock()
	if r == nil {
		var err error
		if r, err = p.reattach(ctx, dial); err != nil {
			return guest.ProcessExit{}, err
		}
		p.adopt(r)
	}
	for lost := 1; ; lost++ {
		exit, err := r.End(ctx)
		if err == nil || !errors.Is(err, guest.ErrLost) || lost > maxLost {
			return exit, err
		}
		why := err
		if r, err = p.reattach(ctx, dial); err != nil {
			return exit, errors.Join(why, err)
		}
		logLine("attached anew to a process %q whose connection was lost: %v", p.spec.ID, why)
		p.adopt(r)
	}
}

// reattach attaches to the process as soon as the guest can be reached.
func (p *proc) reattach(ctx context.Context, dial dialer) (*guest.Running, error) {
	for {
		r, err := p.attach(ctx, dial)
		var refused *guest.RefusedError
		if err == nil || errors.As(err, &refused) || errors.Is(err, errOver) {
			return r, err
		}
		select {
		case <-time.After(reattachPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// exit is how it has ended, as far as that is known of a process whose guest is
// gone. Nothing tells the connection of that.
func (p *proc) exit(lost guest.ProcessExit) guest.ProcessExit {
	p.mu.Lock()
	r := p.running
	p.mu.Unlock()
	if r == nil {
		return lost
	}
	_ = r.Close()
	if e, err := r.End(context.Background()); err == nil {
		return e
	}
	return lost
}

// end notes how it ended, once. What it wrote may still be on its way.
func (p *proc) end(code int, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hasEnded() {
		return false
	}
	p.code, p.ended = code, at
	close(p.done)
	if p.io != nil {
		p.io.closeStdin()
		go p.release(p.last)
	}
	return true
}

// release closes the streams when all has been passed on, or somebody has closed them.
func (p *proc) release(r *guest.Running) {
	if r != nil {
		select {
		case <-r.Passed():
		case <-p.io.closed:
		}
	}
	p.io.close()
}

// outputLimit is for how long the output of a process that has ended waits for its
// reader when containerd wants to have done with it.
const outputLimit = 10 * time.Second

// dispose ends what is left of a process that has ended.
func (p *proc) dispose(ctx context.Context) {
	if p.io == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, outputLimit)
	defer cancel()
	select {
	case <-p.io.closed:
	case <-ctx.Done():
		p.io.close()
	}
}

func (p *proc) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends it one, or to all that it has started. While it is being started, that
// waits until it runs.
func (p *proc) signal(number uint32, all bool) error {
	to, early := guest.ToProcess, guest.ToBeginning
	if all {
		to, early = guest.ToAll, guest.ToAll
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r := p.running; {
	case p.hasEnded():
		return errEnded
	case r == nil && !p.starting:
		return errNotStarted
	case r == nil && p.started: // nobody is attached to it yet
		p.waiting = append(p.waiting, signalled{number, to})
		return nil
	case r == nil:
		if p.waiting = append(p.waiting, signalled{number, early}); len(p.waiting) == 1 {
			close(p.hurry)
		}
		return nil
	case r.Signal(int(number), to) == nil:
		return nil
	case isOver(r):
		if _, err := r.End(context.Background()); !errors.Is(err, guest.ErrLost) {
			return errEnded
		}
	}
	p.waiting = append(p.waiting, signalled{number, to}) // for the next connection
	return nil
}

func (p *proc) resize(rows, cols uint16) error {
	p.mu.Lock()
	r := p.running
	p.rows, p.cols, p.resized = rows, cols, true
	p.mu.Unlock()
	if r == nil || p.hasEnded() {
		return nil
	}
	return r.Resize(rows, cols)
}

func (p *proc) status() (task.Status, int, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.hasEnded():
		return task.Status_STOPPED, p.code, p.ended
	case p.started:
		return task.Status_RUNNING, 0, time.Time{}
	}
	return task.Status_CREATED, 0, time.Time{}
}
