package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// DetachedError says that the guest's agent ended a connection and not the
// process: since another has attached to it, or a snapshot is made of the guest.
type DetachedError struct{ Why string }

func (e *DetachedError) Error() string {
	return "the guest's agent has let go of the process: " + e.Why
}

// Running is the host's end of a process in a guest. What comes from there is
// hostile input, as for a Session. Its methods may be called from many
// goroutines.
type Running struct {
	conn           io.ReadWriteCloser
	pid            int
	stdout, stderr *outflow

	write sync.Mutex // held to write a frame

	mu       sync.Mutex    // guards what follows
	room     *sync.Cond    // window has grown, or over is set
	window   int           // bytes of stdin that may be sent
	eof      bool          // stdin was closed
	detached bool          // it was asked for
	over     chan struct{} // closed with exit or err
	passed   chan struct{} // closed after that, when nothing is written to stdout and stderr any more
	exit     ProcessExit
	err      error
}

var _ io.WriteCloser = (*Running)(nil)

// Exec runs a process in the guest behind conn, a connection to its ExecPort,
// which it owns from then on, also when it fails. It returns when the process
// runs; an error of the guest's is a *RefusedError. What the process writes goes
// to stdout and stderr (nil: nowhere), to each in order and by one call at a time,
// but to both at once. While such a call does not return the process has to wait, as soon as it has
// written OutputWindow bytes more; but its end is known whatever becomes of them.
func Exec(ctx context.Context, conn io.ReadWriteCloser, p Process, stdout, stderr io.Writer) (*Running, error) {
	if err := p.Validate(); err != nil {
		conn.Close()
		return nil, err
	}
	b, err := json.Marshal(p)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return begin(ctx, conn, KindExec, b, stdout, stderr)
}

// Attach is Exec for a process that runs, or has ended and nobody has been told.
// Who was attached to it before is not any more.
func Attach(ctx context.Context, conn io.ReadWriteCloser, id string, stdout, stderr io.Writer) (*Running, error) {
	return begin(ctx, conn, KindAttach, []byte(id), stdout, stderr)
}

func begin(ctx context.Context, conn io.ReadWriteCloser, k Kind, payload []byte, stdout, stderr io.Writer) (*Running, error) {
	r := &Running{conn: conn, stdout: newOutflow(KindStdout, stdout), stderr: newOutflow(KindStderr, stderr), window: StdinWindow,
		over: make(chan struct{}), passed: make(chan struct{})}
	r.room = sync.NewCond(&r.mu)
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	pid, err := ask(conn, k, payload)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	r.pid = pid
	go r.reader()
	go r.pass()
	return r, nil
}

// ask sends the first frame and returns the pid that answers it.
func ask(conn io.ReadWriter, k Kind, payload []byte) (int, error) {
	if err := WriteFrame(conn, k, payload); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrLost, err)
	}
	k, p, err := ReadFrame(conn, FromExecAgent, nil)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrLost, err)
	}
	switch k {
	case KindStarted:
		return DecodeCount(p)
	case KindRefused:
		refused, err := DecodeRefused(p)
		if err != nil {
			return 0, err
		}
		return 0, refused
	case KindDetached:
		return 0, &DetachedError{string(p)}
	}
	return 0, fmt.Errorf("the guest's agent answers with a frame of kind %d", k)
}

// PID is the process's in the guest.
func (r *Running) PID() int { return r.pid }

// reader takes what the agent sends until the connection ends. It never waits for who
// takes the output: an end may be behind it.
func (r *Running) reader() {
	defer r.conn.Close()
	buf := make([]byte, MaxOutput)
	for {
		k, p, err := ReadFrame(r.conn, FromExecAgent, buf)
		if err != nil {
			r.end(nil, fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		if over, err := r.take(k, p); over {
			r.end(nil, err)
			return
		}
	}
}

// take handles a frame; it returns true for the last, and on an error.
func (r *Running) take(k Kind, p []byte) (over bool, err error) {
	switch k {
	case KindStdout:
		err = r.stdout.add(p)
	case KindStderr:
		err = r.stderr.add(p)
	case KindTaken:
		var n int
		if n, err = DecodeCount(p); err == nil {
			err = r.taken(n)
		}
	case KindEnded:
		var e ProcessExit
		if e, err = DecodeProcessExit(p); err == nil {
			r.end(&e, nil)
			r.write.Lock()
			_ = WriteFrame(r.conn, KindNoted, nil) // else it is told again to who attaches to it
			r.write.Unlock()
		}
		return true, err
	case KindDetached:
		r.mu.Lock()
		asked := r.detached
		r.mu.Unlock()
		if asked {
			return true, &DetachedError{"that was asked for"}
		}
		return true, &DetachedError{string(p)}
	default:
		err = fmt.Errorf("%w: a frame of kind %d from a process", ErrLost, k)
	}
	return err != nil, err
}

// pass passes output on.
func (r *Running) pass() {
	defer close(r.passed)
	var both sync.WaitGroup
	for _, o := range []*outflow{r.stdout, r.stderr} {
		both.Go(func() {
			if err := o.pass(func(n int) { _ = r.frame(KindRoom, EncodeRoom(o.kind, n)) }); err != nil {
				r.end(nil, err)
				r.conn.Close()
			}
		})
	}
	both.Wait()
}

func (r *Running) taken(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n > StdinWindow-r.window {
		return fmt.Errorf("%w: it took %d bytes more of stdin than it was sent", ErrLost, n-(StdinWindow-r.window))
	}
	r.window += n
	r.room.Broadcast()
	return nil
}

// end notes how it went; the first time counts.
func (r *Running) end(e *ProcessExit, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver() {
		return
	}
	if r.err = err; e != nil {
		r.exit = *e
	}
	close(r.over)
	r.room.Broadcast()
	r.stdout.finish()
	r.stderr.finish()
}

// Write sends bytes to the process's stdin. It waits while the process does not
// read; once the process has ended it is an error.
func (r *Running) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		some, err := r.reserve(min(len(p), MaxOutput))
		if err != nil {
			return n, err
		}
		if err := r.frame(KindStdin, p[:some]); err != nil {
			return n, err
		}
		n, p = n+some, p[some:]
	}
	return n, nil
}

// reserve waits until some of those bytes may be sent, and says how many.
func (r *Running) reserve(want int) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.window == 0 && !r.isOver() && !r.eof {
		r.room.Wait()
	}
	if r.isOver() || r.eof {
		return 0, io.ErrClosedPipe
	}
	some := min(want, r.window)
	r.window -= some
	return some, nil
}

func (r *Running) isOver() bool {
	select {
	case <-r.over:
		return true
	default:
		return false
	}
}

// CloseStdin lets the process read the end of its stdin after what was written.
// It is idempotent. A terminal has no such end.
func (r *Running) CloseStdin() error {
	r.mu.Lock()
	before := r.eof
	r.eof = true
	r.room.Broadcast()
	r.mu.Unlock()
	if before {
		return nil
	}
	return r.frame(KindEOF, nil)
}

// Resize tells the process's terminal its size.
func (r *Running) Resize(rows, cols uint16) error {
	return r.frame(KindResize, EncodeResize(rows, cols))
}

// Signal sends a signal. It does not say whether there was still anyone to get it.
func (r *Running) Signal(signal int, to SignalTo) error {
	b, err := EncodeSignal(signal, to)
	if err != nil {
		return err
	}
	return r.frame(KindSignal, b)
}

// Detach leaves the process running and ends the connection when all that was
// written until then has come. Wait returns a *DetachedError then.
func (r *Running) Detach(ctx context.Context) error {
	r.mu.Lock()
	r.detached = true
	r.mu.Unlock()
	if err := r.frame(KindDetach, nil); err != nil {
		return err
	}
	select {
	case <-r.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	var detached *DetachedError
	switch _, err := r.result(); {
	case err == nil, errors.As(err, &detached): // it may have ended at that moment
		return nil
	default:
		return err
	}
}

// Wait returns how the process ended, when all that it wrote has been passed on; a
// *DetachedError when it may run on; or an error that wraps ErrLost.
func (r *Running) Wait(ctx context.Context) (ProcessExit, error) {
	select {
	case <-r.passed:
		exit, err := r.result()
		return exit, errors.Join(err, r.stdout.failed(), r.stderr.failed())
	case <-ctx.Done():
		return ProcessExit{}, ctx.Err()
	}
}

// Passed is closed when Wait would not wait.
func (r *Running) Passed() <-chan struct{} { return r.passed }

// End returns how it ended, as Wait does, when that is known: what it wrote has come,
// but who takes that may not have it yet.
func (r *Running) End(ctx context.Context) (ProcessExit, error) {
	select {
	case <-r.over:
		return r.result()
	case <-ctx.Done():
		return ProcessExit{}, ctx.Err()
	}
}

// Done is closed when End would not wait.
func (r *Running) Done() <-chan struct{} { return r.over }

func (r *Running) result() (ProcessExit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exit, r.err
}

// Close ends the connection, and with it a process that has no Keep. It is idempotent.
// What has come until then is still passed on; Passed says when it is.
func (r *Running) Close() error {
	r.conn.Close()
	<-r.over
	return nil
}

func (r *Running) frame(k Kind, payload []byte) error {
	if r.isOver() { // the last frame may be on its way
		return io.ErrClosedPipe
	}
	r.write.Lock()
	defer r.write.Unlock()
	if r.isOver() {
		return io.ErrClosedPipe
	}
	return WriteFrame(r.conn, k, payload)
}
