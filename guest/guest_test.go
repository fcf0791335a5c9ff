package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// newSession makes a session whose other end, the agent, the test plays.
func newSession(t *testing.T, logs func(string, []byte)) (s *Session, agentEnd net.Conn) {
	t.Helper()
	host, agentEnd := net.Pipe()
	go WriteFrame(agentEnd, KindHello, Hello{Version: "7"}.Encode())
	if logs == nil {
		logs = func(string, []byte) {}
	}
	s, err := Connect(t.Context(), host, logs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); agentEnd.Close() })
	return s, agentEnd
}

// answer reads one frame as the agent and answers it.
func answer(t *testing.T, c net.Conn, want Kind, problem string) {
	t.Helper()
	k, _, err := ReadFrame(c, FromHost, nil)
	if err != nil || k != want {
		t.Errorf("the agent got frame %d, %v; want %d", k, err, want)
	}
	if err := WriteFrame(c, KindDone, []byte(problem)); err != nil {
		t.Error(err)
	}
}

func TestQuestionsAndAnswers(t *testing.T) {
	s, agent := newSession(t, nil)
	if s.Version() != "7" {
		t.Errorf("version %q", s.Version())
	}
	var told sync.WaitGroup
	told.Go(func() {
		answer(t, agent, KindStart, "")
		answerTime(t, agent)
	})
	if err := s.Start(t.Context(), Start{Argv: []string{"/x"}}); err != nil {
		t.Error(err)
	}
	told.Wait() // the time comes after the answer
	go answer(t, agent, KindClone, "no entropy")
	if err := s.Clone(t.Context(), Clone{}); err == nil || !strings.Contains(err.Error(), "no entropy") {
		t.Errorf("the agent's error is lost: %v", err)
	}
	go WriteFrame(agent, KindReady, nil)
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestExitEndsWaitingForReady(t *testing.T) {
	s, agent := newSession(t, nil)
	go WriteJSON(agent, KindExit, Exit{Status: "exit status 3"})
	if err := s.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
	<-s.Exited()
}

func TestLostAgent(t *testing.T) {
	s, agent := newSession(t, nil)
	agent.Close()
	<-s.Exited()
	if err := s.ExitErr(); !errors.Is(err, ErrLost) {
		t.Errorf("error %v", err)
	}
	if err := s.Prepare(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("a question after that: %v", err)
	}
}

func TestSilentAgentIsNotWaitedForForEver(t *testing.T) {
	host, agent := net.Pipe()
	defer agent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, host, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestHostileFrames(t *testing.T) {
	for name, frame := range map[string][]byte{
		"huge":          {0xff, 0xff, 0xff, 0x7f, byte(KindStdout)},
		"unknown kind":  {0, 0, 0, 0, 99},
		"unknown field": append([]byte{11, 0, 0, 0, byte(KindExit)}, `{"evil":"x"}`[:11]...),
		"no question":   {0, 0, 0, 0, byte(KindDone), 0, 0, 0, 0, byte(KindDone)},
		"host's kind":   {0, 0, 0, 0, byte(KindStart)},
		"long text":     {0, 0x20, 0, 0, byte(KindDone)},
		"long output":   {1, 0x80, 0, 0, byte(KindStdout)},
		"short clock":   {1, 0, 0, 0, byte(KindClock), 0},
		"clock unasked": append(append([]byte{8, 0, 0, 0, byte(KindClock)}, EncodeTime(1)...), append([]byte{8, 0, 0, 0, byte(KindClock)}, EncodeTime(2)...)...),
		"second hello":  {1, 0, 0, 0, byte(KindHello), 0},
		"data after it": append([]byte{14, 0, 0, 0, byte(KindDropped)}, `{"bytes":1} {}`...),
	} {
		t.Run(name, func(t *testing.T) {
			s, agent := newSession(t, nil)
			go agent.Write(frame)
			<-s.Exited()
			if err := s.ExitErr(); !errors.Is(err, ErrLost) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestPrepareClosesTheConnection on both sides, and that is no loss.
func TestPrepareClosesTheConnection(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	agentDone := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			WriteFrame(c, KindHello, Hello{Version: "7"}.Encode())
			answer(t, c, KindPrepare, "")
			_, _, err = ReadFrame(c, FromHost, nil)
			c.Close()
		}
		agentDone <- err
	}()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := Connect(t.Context(), conn, func(string, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-agentDone; !errors.Is(err, io.EOF) {
		t.Errorf("the agent sees %v, want the end", err)
	}
	select {
	case <-s.Exited():
		t.Errorf("the function is said to have ended: %v", s.ExitErr())
	default:
	}
	if err := s.Clone(t.Context(), Clone{}); !errors.Is(err, ErrLost) {
		t.Errorf("a question after that: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestCancelledQuestion ends the connection: its answer must not be taken for
// another's.
func TestCancelledQuestion(t *testing.T) {
	s, agent := newSession(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ReadFrame(agent, FromHost, nil)
		cancel()
	}()
	if err := s.Clone(ctx, Clone{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := s.Clone(t.Context(), Clone{}); !errors.Is(err, ErrLost) {
		t.Errorf("the next question: %v", err)
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := lineSplitter{stream: "stdout", to: func(_ string, line []byte) { got = append(got, string(line)) }}
	long := strings.Repeat("x", maxLine+10)
	for _, p := range []string{"a\nb", "c\n\n", long, "\nend"} {
		l.write([]byte(p))
	}
	l.flush()
	want := []string{"a", "bc", "", long[:maxLine], long[maxLine:], "end"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("lines %.80q, want %.80q", got, want)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 9, 'a', 'b', 'c'})
	f.Add([]byte{0, 0, 0, 0, 4})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, limit := range []func(Kind) int{FromHost, FromAgent} {
			k, p, err := ReadFrame(bytes.NewReader(b), limit, make([]byte, 16))
			if err != nil {
				continue
			}
			if len(p) > limit(k) {
				t.Errorf("a frame of kind %d with %d bytes", k, len(p))
			}
			var again bytes.Buffer
			if err := WriteFrame(&again, k, p); err != nil || !bytes.Equal(again.Bytes(), b[:again.Len()]) {
				t.Errorf("%x reads and writes as %x (%v)", b, again.Bytes(), err)
			}
		}
	})
}

// FuzzSession lets an agent send anything. The session must end, and take no
// line that is too long.
func FuzzSession(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x00\x09abc\nd\x00\x00\x00\x00\x07"))
	f.Add([]byte("\x0e\x00\x00\x00\x08{\"status\":\"0\"}\x0b\x00\x00\x00\x0b{\"bytes\":1}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, agent := net.Pipe()
		go func() {
			WriteFrame(agent, KindHello, Hello{Version: "7"}.Encode())
			agent.Write(b)
			agent.Close()
		}()
		s, err := Connect(t.Context(), host, func(_ string, line []byte) {
			if len(line) > maxLine && !bytes.HasPrefix(line, []byte("[")) {
				t.Errorf("a line of %d bytes", len(line))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		<-s.Exited()
		if s.ExitErr() == nil {
			t.Error("no reason for the end")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzDecodeClone(f *testing.F) {
	f.Add(Clone{Instance: "i-1", UnixNano: 5, Entropy: []byte{1, 2}, Hook: "/h"}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeClone(b)
		if err == nil && !bytes.Equal(c.Encode(), b) {
			t.Errorf("%x reads and writes as %x", b, c.Encode())
		}
		if h, err := DecodeHello(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("hello %x reads and writes as %x", b, h.Encode())
		}
	})
}

// TestFramesOfBothSidesAreBounded: what a side would refuse, the other does not
// write.
func TestFramesOfBothSidesAreBounded(t *testing.T) {
	for k := range Kind(20) {
		limit := FromHost
		if FromAgent(k) >= 0 {
			limit = FromAgent
		}
		most := limit(k)
		if most >= 0 {
			var b bytes.Buffer
			if err := WriteFrame(&b, k, make([]byte, most)); err != nil {
				t.Errorf("kind %d: writing the longest: %v", k, err)
			}
			if _, p, err := ReadFrame(&b, limit, nil); err != nil || len(p) != most {
				t.Errorf("kind %d: reading it: %d bytes, %v", k, len(p), err)
			}
		}
		var b bytes.Buffer
		if err := WriteFrame(&b, k, make([]byte, most+1)); err == nil || b.Len() > 0 {
			t.Errorf("kind %d: %d bytes are written, %v", k, b.Len(), err)
		}
	}
}

// A restored guest finds the message that it is a clone when it asks for it, and is
// told the time after its answer.
func TestConnectClone(t *testing.T) {
	for _, problem := range []string{"", "no entropy"} {
		host, agent := net.Pipe()
		c := Clone{Instance: "i-1", UnixNano: 5, Entropy: []byte("random")}
		var told sync.WaitGroup
		told.Go(func() {
			k, p, err := ReadFrame(agent, FromHost, nil) // it has not greeted yet
			if got, derr := DecodeClone(p); k != KindClone || err != nil || derr != nil || !reflect.DeepEqual(got, c) {
				t.Errorf("first it is sent %d, %+v, %v, %v", k, got, err, derr)
			}
			if err := errors.Join(WriteFrame(agent, KindHello, Hello{Version: "7"}.Encode()), WriteFrame(agent, KindDone, []byte(problem))); err != nil {
				t.Error(err)
			}
			if problem == "" {
				answerTime(t, agent)
			}
		})
		s, err := ConnectClone(t.Context(), host, func(string, []byte) {}, c)
		told.Wait()
		if problem != "" {
			if err == nil || !strings.Contains(err.Error(), problem) {
				t.Errorf("its error is lost: %v", err)
			}
			if _, err := host.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is open: %v", err)
			}
			continue
		}
		if err != nil || s.Version() != "7" {
			t.Fatalf("%v", err)
		}
		s.Close()
		agent.Close()
	}
	// What it cannot hold is not sent.
	host, agent := net.Pipe()
	defer agent.Close()
	if _, err := ConnectClone(t.Context(), host, nil, Clone{Instance: strings.Repeat("x", 1<<16)}); err == nil || !strings.Contains(err.Error(), "instance") {
		t.Errorf("error %v", err)
	}
}
