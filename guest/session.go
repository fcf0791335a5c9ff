package guest

import (
	"bytes"
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

// maxLine bounds a line of output; a longer one is split.
const maxLine = 16 << 10

// maxAnswer bounds the text of an agent's error.
const maxAnswer = 4 << 10

// Session is the host's end of a connection to an agent. What the agent sends
// is hostile input: capped, decoded strictly, and never trusted beyond its own
// instance.
type Session struct {
	conn  net.Conn
	hello Hello
	logs  func(stream string, line []byte)
	done  chan string
	ready chan struct{}
	exit  chan struct{}
	read  chan struct{} // closed when the reader has ended

	call    sync.Mutex // one request at a time
	mu      sync.Mutex // guards exitErr
	exitErr error
}

// Connect greets the agent at the other end of conn, which the Session owns
// from then on (also when Connect fails). logs is called for each line of the
// function's output, never two at once; the line is valid during the call.
func Connect(ctx context.Context, conn net.Conn, logs func(stream string, line []byte)) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	buf := make([]byte, MaxPayload)
	k, p, err := ReadFrame(conn, buf)
	if err == nil && k != KindHello {
		err = fmt.Errorf("its first frame is of kind %d, want a hello", k)
	}
	var h Hello
	if err == nil {
		h, err = DecodeHello(p)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("hearing the agent's hello: %w", err)
	}
	s := &Session{conn: conn, hello: h, logs: logs, done: make(chan string, 1),
		ready: make(chan struct{}), exit: make(chan struct{}), read: make(chan struct{})}
	if h.Ready {
		close(s.ready)
	}
	go s.reader(buf)
	return s, nil
}

// Version is the agent's.
func (s *Session) Version() string { return s.hello.Version }

// Start tells a booted agent what to run.
func (s *Session) Start(ctx context.Context, v Start) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.ask(ctx, KindStart, b)
}

// Clone tells a restored agent that it is a clone, and returns when it has
// taken that in.
func (s *Session) Clone(ctx context.Context, c Clone) error {
	return s.ask(ctx, KindClone, c.Encode())
}

// Prepare readies the guest for its snapshot: output flushed, files synced.
func (s *Session) Prepare(ctx context.Context) error { return s.ask(ctx, KindPrepare, nil) }

// Ready returns when the function's server answers, or with how it exited.
func (s *Session) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.exit:
		return s.ExitErr()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop sends the function its stop signal, SIGKILL after the grace, and returns
// when it has exited.
func (s *Session) Stop(ctx context.Context, grace time.Duration) error {
	b, err := json.Marshal(Stop{GraceMillis: grace.Milliseconds()})
	if err != nil {
		return err
	}
	if err := s.ask(ctx, KindStop, b); err != nil && !errors.Is(err, ErrLost) {
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

// ExitErr is nil until Exited is closed.
func (s *Session) ExitErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exitErr
}

// Close ends the connection and waits for the reader. The function runs on.
func (s *Session) Close() error {
	err := s.conn.Close()
	<-s.read
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (s *Session) ask(ctx context.Context, k Kind, payload []byte) error {
	s.call.Lock()
	defer s.call.Unlock()
	stop := context.AfterFunc(ctx, func() { s.conn.SetWriteDeadline(time.Unix(1, 0)) })
	err := WriteFrame(s.conn, k, payload)
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	select {
	case d := <-s.done:
		if d != "" {
			return fmt.Errorf("the agent answers: %s", d)
		}
		return nil
	case <-s.read:
		return fmt.Errorf("%w: %w", ErrLost, s.ExitErr())
	case <-ctx.Done():
		// The answer may still come; this connection is of no use for another question.
		s.conn.Close()
		return ctx.Err()
	}
}

func (s *Session) reader(buf []byte) {
	defer close(s.read)
	out, errs := lineSplitter{stream: "stdout", to: s.logs}, lineSplitter{stream: "stderr", to: s.logs}
	var err error
	for err == nil {
		var k Kind
		var p []byte
		if k, p, err = ReadFrame(s.conn, buf); err == nil {
			err = s.take(k, p, &out, &errs)
		}
	}
	out.flush()
	errs.flush()
	s.conn.Close()
	s.exited(fmt.Errorf("%w: %w", ErrLost, err))
}

func (s *Session) take(k Kind, p []byte, out, errs *lineSplitter) error {
	switch k {
	case KindStdout:
		out.write(p)
	case KindStderr:
		errs.write(p)
	case KindDropped:
		var d Dropped
		if err := Decode(p, &d); err != nil {
			return err
		}
		s.logs("stderr", fmt.Appendf(nil, "[%d bytes of output were dropped: they came faster than they could be taken]", d.Bytes))
	case KindReady:
		select {
		case <-s.ready:
		default:
			close(s.ready)
		}
	case KindExit:
		var e Exit
		if err := Decode(p, &e); err != nil {
			return err
		}
		if len(e.Status) > 200 {
			e.Status = e.Status[:200]
		}
		out.flush()
		errs.flush()
		s.exited(fmt.Errorf("the function's process has ended: %q", e.Status))
	case KindDone:
		select {
		case s.done <- string(p[:min(len(p), maxAnswer)]):
		default:
			return errors.New("an answer to no question")
		}
	default:
		return fmt.Errorf("a frame of unknown kind %d", k)
	}
	return nil
}

func (s *Session) exited(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exitErr == nil {
		s.exitErr = err
		close(s.exit)
	}
}

// lineSplitter cuts a stream into lines of at most maxLine bytes.
type lineSplitter struct {
	stream string
	to     func(stream string, line []byte)
	rest   []byte
}

func (l *lineSplitter) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		piece, whole := p, false
		if i >= 0 {
			piece, whole = p[:i], true
			p = p[i+1:]
		} else {
			p = nil
		}
		for len(l.rest)+len(piece) > maxLine {
			n := maxLine - len(l.rest)
			l.to(l.stream, append(l.rest, piece[:n]...))
			l.rest, piece = l.rest[:0], piece[n:]
		}
		l.rest = append(l.rest, piece...)
		if whole {
			l.to(l.stream, l.rest)
			l.rest = l.rest[:0]
		}
	}
}

func (l *lineSplitter) flush() {
	if len(l.rest) > 0 {
		l.to(l.stream, l.rest)
		l.rest = l.rest[:0]
	}
}

var _ io.Closer = (*Session)(nil)
