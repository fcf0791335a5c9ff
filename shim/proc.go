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
	all    bool
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
	return guest.Exec(ctx, conn, spec, stdout, stderr)
}

// attach finds it where it runs already.
func (p *proc) attach(ctx context.Context, dial dialer) (*guest.Running, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling the guest's agent: %w", err)
	}
	return guest.Attach(ctx, conn, p.spec.ID, p.io.stdout, p.io.stderr)
}

// adopt makes what runs the process.
func (p *proc) adopt(r *guest.Running) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.started = r, true
	for _, s := range p.waiting {
		to := guest.ToBeginning
		if s.all {
			to = guest.ToAll
		}
		_ = r.Signal(int(s.number), to) // else it has ended
	}
	if p.io.stdin != nil {
		go p.feed(r)
	}
}

// feed passes input on until its end or the process's.
func (p *proc) feed(r *guest.Running) {
	_, err := io.CopyBuffer(struct{ io.Writer }{r}, struct{ io.Reader }{p.io.stdin}, make([]byte, 32<<10))
	if err == nil {
		_ = r.CloseStdin() // fails when the process has ended
	}
}

// wait waits for the end of a process that was started.
func (p *proc) wait() (guest.ProcessExit, error) {
	exit, err := p.running.Wait(context.Background())
	_ = p.running.Close()
	return exit, err
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
	select {
	case <-r.Done():
		if e, err := r.Wait(context.Background()); err == nil {
			return e
		}
	default:
	}
	go r.Close() // waits for who takes its output, which the end of its streams ends
	return lost
}

// end notes how it ended, once.
func (p *proc) end(code int, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hasEnded() {
		return false
	}
	p.code, p.ended = code, at
	if p.io != nil {
		p.io.close()
	}
	close(p.done)
	return true
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
	p.mu.Lock()
	r := p.running
	if r == nil && p.starting && !p.hasEnded() {
		defer p.mu.Unlock()
		if p.waiting = append(p.waiting, signalled{number, all}); len(p.waiting) == 1 {
			close(p.hurry)
		}
		return nil
	}
	p.mu.Unlock()
	switch {
	case p.hasEnded():
		return errEnded
	case r == nil:
		return errNotStarted
	}
	to := guest.ToProcess
	if all {
		to = guest.ToAll
	}
	if err := r.Signal(int(number), to); errors.Is(err, io.ErrClosedPipe) {
		return errEnded
	} else if err != nil {
		return err
	}
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
