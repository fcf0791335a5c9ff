package guest

import (
	"bufio"
	"errors"
	"fmt"
	"time"
)

// reader takes what the agent sends until the connection ends.
func (s *Session) reader(r *bufio.Reader) {
	defer close(s.read)
	out, errs := lineSplitter{stream: "stdout", to: s.logs}, lineSplitter{stream: "stderr", to: s.logs}
	var buf []byte
	var err error
	for err == nil {
		err = s.readOne(r, &buf, &out, &errs)
	}
	out.flush()
	errs.flush()
	s.conn.Close()
	s.mu.Lock()
	detached := s.detached
	s.mu.Unlock()
	if !detached {
		s.exited(fmt.Errorf("%w: %w", ErrLost, err))
	}
}

// readOne waits for a frame as long as need be, and for the rest of one that
// has begun no longer than frameLimit.
func (s *Session) readOne(r *bufio.Reader, buf *[]byte, out, errs *lineSplitter) error {
	if _, err := r.Peek(1); err != nil {
		return err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(frameLimit)); err != nil {
		return err
	}
	k, p, err := ReadFrame(r, FromAgent, *buf)
	if err != nil {
		return err
	}
	if len(p) > len(*buf) {
		*buf = p // so that an instance whose function is silent holds none
	}
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return s.take(k, p, out, errs)
}

// maxStatus bounds how long the status of a process may be, in bytes.
const maxStatus = 200

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
		out.flush()
		errs.flush()
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
		out.flush()
		errs.flush()
		s.exited(&ExitError{Status: e.Status[:min(len(e.Status), maxStatus)]})
	case KindDone:
		select {
		case s.done <- string(p):
		default:
			return errors.New("an answer to no question")
		}
	case KindClock:
		t, err := DecodeTime(p)
		if err != nil {
			return err
		}
		select {
		case s.clock <- t:
		default:
			return errors.New("a clock that was not asked for")
		}
	default:
		return fmt.Errorf("a second frame of kind %d", k)
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
