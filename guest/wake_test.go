package guest_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/guest"
)

// waking is an agent that says hello and these frames, and answers a time, in this order.
func waking(t *testing.T, frames ...func(net.Conn) error) net.Conn {
	t.Helper()
	host, conn := net.Pipe()
	t.Cleanup(func() { conn.Close(); host.Close() })
	go func() {
		k, p, err := guest.ReadFrame(conn, guest.FromHost, nil)
		if _, terr := guest.DecodeTime(p); err != nil || k != guest.KindTime || terr != nil {
			t.Errorf("frame %d of %d bytes, %v", k, len(p), err)
		}
		for _, f := range frames {
			if f(conn) != nil {
				return
			}
		}
	}()
	return host
}

func says(k guest.Kind, p []byte) func(net.Conn) error {
	return func(c net.Conn) error { return guest.WriteFrame(c, k, p) }
}

// An agent that was woken is greeted as any other: nothing that it has said is lost, and the answer to the time
// is not taken for that to another question.
func TestWake(t *testing.T) {
	asked := make(chan guest.Clone, 1)
	conn, err := guest.Wake(t.Context(), waking(t,
		says(guest.KindHello, guest.Hello{Version: "10", Started: true, Ready: true}.Encode()),
		says(guest.KindStdout, []byte("before\n")),
		says(guest.KindClock, guest.EncodeTime(1)),
		func(c net.Conn) error {
			k, p, err := guest.ReadFrame(c, guest.FromHost, nil)
			if err != nil || k != guest.KindClone {
				t.Errorf("frame %d, %v", k, err)
			}
			m, err := guest.DecodeClone(p)
			if err != nil {
				t.Error(err)
			}
			asked <- m
			return guest.WriteFrame(c, guest.KindDone, nil)
		},
		func(c net.Conn) error { // with which the clock is kept
			if k, _, err := guest.ReadFrame(c, guest.FromHost, nil); err != nil || k != guest.KindTime {
				t.Errorf("frame %d, %v", k, err)
			}
			return guest.WriteFrame(c, guest.KindStdout, []byte("after\n"))
		},
	))
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 2)
	s, err := guest.ConnectClone(t.Context(), conn, func(_ string, line []byte) { lines <- string(line) },
		guest.Clone{Instance: "i-1", UnixNano: 2, Entropy: bytes.Repeat([]byte{1}, 64)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if m := <-asked; m.Instance != "i-1" || s.Version() != "10" {
		t.Errorf("clone %+v, version %q", m, s.Version())
	}
	if a, b := <-lines, <-lines; a != "before" || b != "after" {
		t.Errorf("lines %q, %q", a, b)
	}
}

// One that says nothing, what it should not, or too much, is not waited for, and its connection is closed.
func TestWakeBounds(t *testing.T) {
	late := errors.New("too late")
	much := make([]func(net.Conn) error, 20)
	for i := range much {
		much[i] = says(guest.KindStdout, make([]byte, guest.MaxOutput))
	}
	for name, tc := range map[string]struct {
		frames []func(net.Conn) error
		want   string
	}{
		"silence": {nil, late.Error()},
		"clone":   {[]func(net.Conn) error{says(guest.KindClone, nil)}, "which this side does not send"},
		"flood":   {much, "it says more than"},
		"end":     {[]func(net.Conn) error{func(c net.Conn) error { return c.Close() }}, "EOF"},
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, late)
		if name != "silence" {
			ctx = t.Context()
		}
		conn := waking(t, tc.frames...)
		if _, err := guest.Wake(ctx, conn); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if _, err := conn.Write([]byte{0}); err == nil {
			t.Errorf("%s: the connection is open", name)
		}
		cancel()
	}
}
