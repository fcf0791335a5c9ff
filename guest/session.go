package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrLost says that the agent's connection ended.
var ErrLost = errors.New("the guest's agent is gone")

// ExitError says that the function's process has ended, which is not supposed
// to happen, whatever its status.
type ExitError struct {
	Status string // as the agent tells it: "exit status 3", "killed by SIGKILL"
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("the function's process has ended: %q", e.Status)
}

// Bounds of what the host waits for, where the caller's context does not end
// before.
const (
	helloLimit  = time.Minute      // for the agent to greet
	answerLimit = 5 * time.Minute  // for an answer, the function's own time to stop not counted
	frameLimit  = 30 * time.Second // for the rest of a frame that has begun
)

// Session is the host's end of a connection to an agent. What the agent sends
// is hostile input: capped, decoded strictly, and never trusted beyond its own
// instance. Its methods may be called from many goroutines.
type Session struct {
	conn  net.Conn
	hello Hello
	logs  func(stream string, line []byte)
	done  chan string   // answers; capacity 1
	clock chan int64    // the guest's clock, when it was told the time; capacity 1
	ready chan struct{} // closed when the function's server answers
	exit  chan struct{} // closed with exitErr
	read  chan struct{} // closed when the reader has ended
	call  sync.Mutex    // held by a question until its answer

	clockKept sync.WaitGroup // for who keeps the guest's clock

	mu         sync.Mutex // guards what follows
	exitErr    error
	detached   bool          // Prepare has succeeded: the connection's end is no news
	clockStop  chan struct{} // while the guest's clock is kept; closed when it is not to be any more
	clockRange *ClockRange
}

var _ io.Closer = (*Session)(nil)

// Connect greets the agent at the other end of conn, which the Session owns
// from then on (also when Connect fails). logs is called for each line of the
// function's output, never two at once; the line is valid during the call. A
// slow logs slows nobody but the log: what the agent cannot hold is dropped,
// and the log says how much.
func Connect(ctx context.Context, conn net.Conn, logs func(stream string, line []byte)) (*Session, error) {
	return connect(ctx, conn, logs, nil)
}

// ConnectClone is Connect, and then Clone with c, for a guest that was restored. The
// message is sent ahead of the agent's greeting: it is there when the agent asks for
// it, which then needs not be woken once more.
func ConnectClone(ctx context.Context, conn net.Conn, logs func(stream string, line []byte), c Clone) (_ *Session, err error) {
	if err := c.validate(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s, err := connect(ctx, conn, logs, c.Encode())
	if err != nil {
		return nil, err
	}
	if err := s.hear(ctx, answerLimit, func() error { return nil }); err != nil {
		return nil, errors.Join(fmt.Errorf("telling the guest that it is a clone: %w", err), s.Close())
	}
	s.keepClock()
	return s, nil
}

// connect sends the payload of a Clone first, if there is one.
func connect(ctx context.Context, conn net.Conn, logs func(stream string, line []byte), clone []byte) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, helloLimit)
	defer cancel()
	s := &Session{conn: conn, logs: logs, done: make(chan string, 1), clock: make(chan int64, 1),
		ready: make(chan struct{}), exit: make(chan struct{}), read: make(chan struct{})}
	r := bufio.NewReaderSize(conn, headLen+maxText)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var err error
	if clone != nil {
		err = WriteFrame(conn, KindClone, clone)
	}
	var h Hello
	if err == nil {
		h, err = readHello(r)
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("hearing the agent's hello: %w", err)
	}
	s.hello = h
	if h.Ready {
		close(s.ready)
	}
	go s.reader(r)
	return s, nil
}

func readHello(r io.Reader) (Hello, error) {
	k, p, err := ReadFrame(r, FromAgent, nil)
	if err != nil {
		return Hello{}, err
	}
	if k != KindHello {
		return Hello{}, fmt.Errorf("its first frame is of kind %d", k)
	}
	return DecodeHello(p)
}

// Version is the agent's.
func (s *Session) Version() string { return s.hello.Version }

// Start tells a booted agent what to run. It returns when the function's
// process runs; Ready waits for its server.
func (s *Session) Start(ctx context.Context, v Start) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := s.ask(ctx, KindStart, b, answerLimit); err != nil {
		return err
	}
	s.keepClock()
	return nil
}

// Clone tells a restored agent that it is a clone, and returns when it has
// taken that in: entropy, time and name are new, its processes run again, and the
// hook has returned. From then on its clock is kept.
func (s *Session) Clone(ctx context.Context, c Clone) error {
	if err := c.validate(); err != nil {
		return err
	}
	if err := s.ask(ctx, KindClone, c.Encode(), answerLimit); err != nil {
		return err
	}
	s.keepClock()
	return nil
}

// Prepare readies the guest for its snapshot: the function's processes are
// frozen until a Clone thaws them, its output so far has been handed over, files
// are synced, and the connection is closed on both sides, so that no clone wakes
// up with half of it. Prepare is the last call but Close; the end of this
// connection does not close Exited.
//
// The guest's page cache stays: the function's files are in it, a clone would
// read them from disk again, and pages that are freed keep their content, so
// that the snapshot would be no smaller.
func (s *Session) Prepare(ctx context.Context) error {
	s.stopClock()
	if err := s.ask(ctx, KindPrepare, nil, answerLimit); err != nil {
		return err
	}
	s.mu.Lock()
	s.detached = true
	s.mu.Unlock()
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok {
		return s.Close()
	}
	if err := half.CloseWrite(); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	select {
	case <-s.read: // the agent has closed its end too
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ready returns when the function's server answers, or with an *ExitError, or
// with ErrLost.
func (s *Session) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
	case <-s.exit:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.ExitErr()
}

// Stop sends the function its stop signal, SIGKILL to all of its processes
// after the grace, and returns when it has exited.
func (s *Session) Stop(ctx context.Context, grace time.Duration) error {
	b, err := json.Marshal(Stop{GraceMillis: grace.Milliseconds()})
	if err != nil {
		return err
	}
	if err := s.ask(ctx, KindStop, b, grace+answerLimit); err != nil && !errors.Is(err, ErrLost) {
		return err
	}
	select {
	case <-s.exit:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Exited is closed when the function's process has ended or the agent is lost;
// ExitErr says which, and how.
func (s *Session) Exited() <-chan struct{} { return s.exit }

// ExitErr is nil until Exited is closed; then an *ExitError, or it wraps ErrLost.
func (s *Session) ExitErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exitErr
}

// Close ends the connection and waits for the reader. The function runs on.
func (s *Session) Close() error {
	err := s.conn.Close()
	<-s.read
	s.stopClock()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// ask sends a frame and waits for its answer. When ctx or the limit ends before
// that, so does the connection: the answer might come after all, and be taken
// for another question's.
func (s *Session) ask(ctx context.Context, k Kind, payload []byte, limit time.Duration) error {
	if most := FromHost(k); len(payload) > most { // the connection is as good as before
		return fmt.Errorf("a message of %d bytes for the agent: at most %d are allowed", len(payload), most)
	}
	return s.hear(ctx, limit, func() error { return WriteFrame(s.conn, k, payload) })
}

// hear waits for the answer to what is sent.
func (s *Session) hear(ctx context.Context, limit time.Duration, send func() error) error {
	s.call.Lock()
	defer s.call.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	err := send()
	if err == nil {
		select {
		case d := <-s.done:
			return answered(d)
		case <-s.read:
			err = s.ExitErr()
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("waiting for the agent: %w", ctx.Err())
	}
	select { // the answer may have been the last that came
	case d := <-s.done:
		return answered(d)
	default:
	}
	switch {
	case err == nil: // after Prepare
		return ErrLost
	case errors.Is(err, ErrLost):
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

func answered(problem string) error {
	if problem == "" {
		return nil
	}
	return fmt.Errorf("the agent answers: %s", problem)
}
