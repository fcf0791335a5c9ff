package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// begun makes a running process whose agent the test plays.
func begun(t *testing.T, stdout io.Writer) (*Running, net.Conn) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	host, agent := net.Pipe()
	go func() {
		ReadFrame(agent, FromExecHost, nil)
		WriteFrame(agent, KindStarted, EncodeCount(7))
	}()
	r, err := Exec(t.Context(), host, Process{ID: "x", Argv: []string{"x"}}, stdout, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		agent.Close()
		goleak.VerifyNone(t, before)
	})
	return r, agent
}

func TestRunning(t *testing.T) {
	var out bytes.Buffer
	r, agent := begun(t, &out)
	if r.PID() != 7 {
		t.Errorf("pid %d", r.PID())
	}
	want := ProcessExit{Code: 137, Signal: 9, OOM: true, UnixNano: 5}
	go func() {
		WriteFrame(agent, KindStdout, []byte("a"))
		WriteFrame(agent, KindStderr, []byte("lost"))
		WriteFrame(agent, KindStdout, []byte("b"))
		WriteFrame(agent, KindEnded, want.Encode())
	}()
	if exit, err := r.Wait(t.Context()); err != nil || exit != want || out.String() != "ab" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if err := r.Signal(15, ToProcess); err == nil {
		t.Error("a signal for what has ended")
	}
}

// blocked is a writer that takes nothing until it is opened.
type blocked struct {
	open chan struct{}
	n    int
}

func (w *blocked) Write(p []byte) (int, error) {
	<-w.open
	w.n += len(p)
	return len(p), nil
}

// A process's end is known though nobody takes what it wrote, which is kept for them.
func TestEndIsNotBehindOutput(t *testing.T) {
	w := &blocked{open: make(chan struct{})}
	r, agent := begun(t, w)
	want := ProcessExit{Code: 3}
	const n = OutputWindow + 10*MaxOutput
	go func() {
		for range n / MaxOutput {
			WriteFrame(agent, KindStdout, make([]byte, MaxOutput))
		}
		WriteFrame(agent, KindEnded, want.Encode())
	}()
	if exit, err := r.End(t.Context()); err != nil || exit != want {
		t.Errorf("%+v, %v", exit, err)
	}
	if k, _, err := ReadFrame(agent, FromExecHost, nil); err != nil || k != KindNoted {
		t.Errorf("the end is answered with a frame of kind %d, %v", k, err)
	}
	select {
	case <-r.Passed():
		t.Error("output is passed on that nobody takes")
	default:
	}
	close(w.open)
	if exit, err := r.Wait(t.Context()); err != nil || exit != want || w.n != n {
		t.Errorf("%+v, %v; of %d bytes %d came", exit, err, n, w.n)
	}
}

// The agent is told of room when output has been taken, and not before; one output does
// not wait for the other.
func TestRoomForOutput(t *testing.T) {
	w := &blocked{open: make(chan struct{})}
	r, agent := begun(t, w)
	var other bytes.Buffer
	r.stderr.to = &other
	for range OutputWindow / MaxOutput {
		WriteFrame(agent, KindStdout, make([]byte, MaxOutput))
	}
	for range OutputWindow / 2 / MaxOutput {
		WriteFrame(agent, KindStderr, make([]byte, MaxOutput))
	}
	room := func(want Kind) {
		t.Helper()
		k, p, err := ReadFrame(agent, FromExecHost, nil)
		if err != nil || k != KindRoom {
			t.Fatalf("frame of kind %d, %v", k, err)
		}
		if k, n, err := DecodeRoom(p); err != nil || k != want || n != OutputWindow/2 {
			t.Errorf("room for %d bytes of kind %d, %v", n, k, err)
		}
	}
	room(KindStderr)
	close(w.open)
	room(KindStdout)
	room(KindStdout)
}

// More than there is room for, and than a process can leave, is hostile.
func TestMoreOutputThanRoom(t *testing.T) {
	w := &blocked{open: make(chan struct{})}
	r, agent := begun(t, w)
	t.Cleanup(func() { close(w.open) })
	go func() {
		for range (OutputWindow+MaxRest)/MaxOutput + 1 {
			WriteFrame(agent, KindStdout, make([]byte, MaxOutput))
		}
	}()
	if _, err := r.End(t.Context()); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
}

func TestStdinWaitsForRoom(t *testing.T) {
	r, agent := begun(t, nil)
	written := make(chan error, 1)
	go func() {
		_, err := r.Write(make([]byte, StdinWindow+1))
		written <- err
	}()
	buf := make([]byte, MaxOutput)
	for n := 0; n < StdinWindow; {
		k, p, err := ReadFrame(agent, FromExecHost, buf)
		if err != nil || k != KindStdin {
			t.Fatalf("frame %d, %v", k, err)
		}
		n += len(p)
	}
	select {
	case err := <-written:
		t.Fatalf("more than the window was written: %v", err)
	default:
	}
	go WriteFrame(agent, KindTaken, EncodeCount(1))
	if k, p, err := ReadFrame(agent, FromExecHost, buf); err != nil || k != KindStdin || len(p) != 1 {
		t.Errorf("when there is room again: frame %d of %d bytes, %v", k, len(p), err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

func TestHostileProcess(t *testing.T) {
	for name, frame := range map[string][]byte{
		"huge":            {0xff, 0xff, 0xff, 0x7f, byte(KindStdout)},
		"unknown":         {0, 0, 0, 0, 99},
		"second start":    {4, 0, 0, 0, byte(KindStarted), 1, 0, 0, 0},
		"copied":          {0, 0, 0, 0, byte(KindCopied)},
		"taken too much":  {4, 0, 0, 0, byte(KindTaken), 1, 0, 0, 0},
		"short end":       {1, 0, 0, 0, byte(KindEnded), 1},
		"signal 200":      {11, 0, 0, 0, byte(KindEnded), 72, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"status of none":  {11, 0, 0, 0, byte(KindEnded), 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"host's room":     {5, 0, 0, 0, byte(KindRoom), byte(KindStdout), 1, 0, 0, 0},
		"host's":          {0, 0, 0, 0, byte(KindEOF)},
		"of another port": {0, 0, 0, 0, byte(KindDone)},
	} {
		t.Run(name, func(t *testing.T) {
			r, agent := begun(t, nil)
			go agent.Write(frame)
			if exit, err := r.Wait(t.Context()); err == nil {
				t.Errorf("%+v", exit)
			}
			if _, err := r.Write([]byte("x")); err == nil {
				t.Error("it takes input")
			}
		})
	}
}

func TestExecRefused(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(net.Conn)
		check  func(error) bool
	}{
		"refused": {func(c net.Conn) { WriteFrame(c, KindRefused, (&RefusedError{RefusedNotFound, "no such"}).Encode()) },
			func(err error) bool {
				var r *RefusedError
				return errors.As(err, &r) && r.Why == RefusedNotFound && r.Text == "no such"
			}},
		"bad class": {func(c net.Conn) { WriteFrame(c, KindRefused, []byte{77}) }, func(err error) bool { return err != nil }},
		"gone":      {func(c net.Conn) { c.Close() }, func(err error) bool { return errors.Is(err, ErrLost) }},
		"snapshot": {func(c net.Conn) { WriteFrame(c, KindDetached, []byte("a snapshot")) },
			func(err error) bool { return strings.Contains(err.Error(), "a snapshot") }},
	} {
		host, agent := net.Pipe()
		go func() {
			ReadFrame(agent, FromExecHost, nil)
			c.answer(agent)
		}()
		if _, err := Exec(t.Context(), host, Process{ID: "x", Argv: []string{"x"}}, nil, nil); !c.check(err) {
			t.Errorf("%s: %v", name, err)
		}
		agent.Close()
	}
	host, agent := net.Pipe()
	defer agent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ReadFrame(agent, FromExecHost, nil)
		cancel()
	}()
	if _, err := Exec(ctx, host, Process{ID: "x", Argv: []string{"x"}}, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestValidateProcess(t *testing.T) {
	big := 1001
	umask := uint32(0o1000)
	for _, p := range []Process{{}, {ID: "a b", Argv: []string{"x"}}, {ID: strings.Repeat("x", 129), Argv: []string{"x"}}, {ID: "x"}, {ID: "x", Argv: []string{""}},
		{ID: "x", Argv: []string{"x"}, OOMScoreAdj: &big}, {ID: "x", Argv: []string{"x"}, Umask: &umask}} {
		host, agent := net.Pipe()
		if _, err := Exec(t.Context(), host, p, nil, nil); err == nil || errors.Is(err, ErrLost) {
			t.Errorf("%+v: %v", p, err)
		}
		agent.Close()
	}
}

func TestCloneNames(t *testing.T) {
	c := Clone{Instance: "i", UnixNano: 1, Entropy: []byte("e"), Hook: "/h"}
	short := c.Encode()
	c.Files = []File{{"/run/secrets/token", []byte("secret")}, {"/run/secrets/none", nil}}
	noNames := c.Encode()
	c.Names = Names{Hosts: strings.Repeat("x", 3000), Resolv: "r"}
	for _, b := range [][]byte{short, noNames, c.Encode()} {
		got, err := DecodeClone(b)
		want := c
		if len(b) <= len(noNames) {
			want.Names = Names{}
		}
		if len(b) == len(short) {
			want.Files = nil
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v", got, err)
		}
		for _, bad := range [][]byte{b[:len(b)-1], append(b[:len(b):len(b)], 0)} {
			if got, err := DecodeClone(bad); err == nil {
				t.Errorf("%d of %d bytes are %+v", len(bad), len(b), got)
			}
		}
	}
	c.Hosts = strings.Repeat("x", 1<<16)
	s, _ := newSession(t, nil)
	if err := s.Clone(t.Context(), c); err == nil || !strings.Contains(err.Error(), "hosts") {
		t.Errorf("hosts of 64 KiB: %v", err)
	}
	c.Hosts, c.Files = "", []File{{"/x", make([]byte, MaxCloneFiles-5)}}
	if err := s.Clone(t.Context(), c); err == nil || !strings.Contains(err.Error(), "files") {
		t.Errorf("a file of 64 KiB: %v", err)
	}
}

// FuzzExecFrames reads both sides' frames of any bytes.
func FuzzExecFrames(f *testing.F) {
	for _, frame := range [][]byte{
		{4, 0, 0, 0, byte(KindStarted), 7, 0, 0, 0}, {2, 0, 0, 0, byte(KindSignal), 9, 1}, {4, 0, 0, 0, byte(KindResize), 1, 0, 2, 0},
		append([]byte{11, 0, 0, 0, byte(KindEnded)}, ProcessExit{Code: 3}.Encode()...), {2, 0, 0, 0, byte(KindRefused), 1, 'x'},
		append([]byte{24, 0, 0, 0, byte(KindExec)}, `{"id":"x","argv":["x"]} `...),
	} {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, limit := range []func(Kind) int{FromExecHost, FromExecAgent} {
			k, p, err := ReadFrame(bytes.NewReader(b), limit, nil)
			if err != nil {
				continue
			}
			if len(p) > limit(k) {
				t.Fatalf("kind %d with %d bytes", k, len(p))
			}
			if e, err := DecodeProcessExit(p); err == nil && !bytes.Equal(e.Encode(), p) {
				t.Fatalf("%+v is not %x", e, p)
			}
			if n, to, err := DecodeSignal(p); err == nil {
				if back, err := EncodeSignal(n, to); err != nil || !bytes.Equal(back, p) {
					t.Fatalf("signal %d, %d: %v", n, to, err)
				}
			}
			if rows, cols, err := DecodeResize(p); err == nil && !bytes.Equal(EncodeResize(rows, cols), p) {
				t.Fatalf("size %d, %d", rows, cols)
			}
			if k, n, err := DecodeRoom(p); err == nil && !bytes.Equal(EncodeRoom(k, n), p) {
				t.Fatalf("room for %d of kind %d", n, k)
			}
			if n, err := DecodeCount(p); err == nil && !bytes.Equal(EncodeCount(n), p) {
				t.Fatalf("count %d", n)
			}
			if r, err := DecodeRefused(p); err == nil && len(r.Text) < maxText && !bytes.Equal(r.Encode(), p) {
				t.Fatalf("%+v is not %x", r, p)
			}
			var spec Process
			if Decode(p, &spec) == nil {
				_ = spec.Validate()
			}
		}
	})
}
