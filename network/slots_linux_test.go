package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestOptionsAreChecked(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Options)
	}{
		{"no prefix", func(o *Options) { o.Prefix = "" }},
		{"prefix with a slash", func(o *Options) { o.Prefix = "a/b" }},
		{"no MAC", func(o *Options) { o.GuestMAC = nil }},
		{"IPv6 guest", func(o *Options) { o.Guest = net.ParseIP("fe80::1") }},
		{"gateway elsewhere", func(o *Options) { o.Gateway = net.IPv4(10, 0, 0, 1) }},
		{"negative", func(o *Options) { o.Ahead = -1 }},
		{"pool over guests", func(o *Options) { o.NATPool = mustPrefix("172.31.0.0/16") }},
		{"pool too small", func(o *Options) { o.NATPool = mustPrefix("10.0.0.0/31") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := testOptions(t, "skept")
			tc.change(&o)
			if _, err := Open(t.Context(), o); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestStaleSlotCannotReachTheNextGuest(t *testing.T) {
	s := open(t, testOptions(t, "skept-stale"))
	first := take(t, s, egressNone)
	s.Give(first)
	s.Give(first) // again, for nothing
	second := takeSame(t, s, first)
	defer s.Give(second)
	g := bootGuest(t, s, second)
	defer g.end()
	listen(t, s, g.ns, ":8080", "hello")
	if c, err := first.Dial(t.Context(), 8080); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the slot that was given back: %v, %v", c, err)
	}
	s.Give(first)
	c, err := second.Dial(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeted(t, c, "hello")
}

// takeSame takes slots until it gets the space of an earlier one.
func takeSame(t testing.TB, s *Slots, earlier *Slot) *Slot {
	t.Helper()
	idle := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.free[egressNone]) > 0
	}
	for end := time.Now().Add(10 * time.Second); !idle(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the slot did not come back")
		}
	}
	slot := take(t, s, egressNone)
	if slot.Name != earlier.Name {
		t.Fatalf("got %s, want %s again", slot.Name, earlier.Name)
	}
	return slot
}

// What was sent to one guest, queued or not acknowledged, must never be seen by
// the next one in the same slot.
func TestReuseLeaksNoPackets(t *testing.T) {
	s := open(t, testOptions(t, "skept-reuse"))
	slot := take(t, s, egressNone)
	g := bootGuest(t, s, slot)
	l := listen(t, s, g.ns, ":8080", "hello")
	kept, err := slot.Dial(t.Context(), 8080) // the daemon forgets to close it
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	greeted(t, kept, "hello")
	orphan, err := slot.Dial(t.Context(), 8080) // closed, with bytes that nobody acknowledged
	if err != nil {
		t.Fatal(err)
	}
	greeted(t, orphan, "hello")
	g.end()
	l.Close()
	tap := attach(t, s, slot) // what is sent now queues here
	for _, c := range []net.Conn{kept, orphan} {
		if _, err := io.WriteString(c, "a secret of the first guest"); err != nil {
			t.Fatal(err)
		}
	}
	orphan.Close()
	tap.Close()
	s.Give(slot)

	next := takeSame(t, s, slot)
	defer s.Give(next)
	tap = attach(t, s, next)
	defer tap.Close()
	// Retransmissions would come after 200 ms at the latest.
	if err := tap.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 70000)
	for {
		n, err := tap.Read(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("the next guest sees a packet of %d bytes: %q", n, frame[:n])
	}
	if _, err := io.WriteString(kept, "more"); err == nil {
		t.Error("a connection outlived the lending of its slot")
	}
}

func TestSlotWithProcessIsNotLentAgain(t *testing.T) {
	opts := testOptions(t, "skept-proc")
	s := open(t, opts)
	slot := take(t, s, egressNone)
	cmd := sleeper(t, s, slot.lease.space.ns)
	s.Give(slot)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(slot.NetNS); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", slot.NetNS)
		}
	}
	stop(cmd)
}

// sleeper starts a process in a namespace.
func sleeper(t testing.TB, s *Slots, ns *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := s.in(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(cmd) })
	return cmd
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestTakeManyAtOnce(t *testing.T) {
	opts := testOptions(t, "skept-many")
	opts.Ahead, opts.Keep = 2, 4
	s := open(t, opts)
	for range 3 {
		var wg sync.WaitGroup
		slots := make([]*Slot, 12)
		for i := range slots {
			wg.Go(func() { slots[i], _ = s.Take(t.Context(), egressNone) })
		}
		wg.Wait()
		seen := make(map[int]bool)
		for _, slot := range slots {
			if slot == nil || seen[slot.Index] {
				t.Fatalf("slots %v: one is missing or lent twice", slots)
			}
			seen[slot.Index] = true
			if _, err := os.Stat(filepath.Join(slot.NetNS)); err != nil {
				t.Error(err)
			}
		}
		for _, slot := range slots {
			wg.Go(func() { s.Give(slot) })
		}
		wg.Wait()
	}
}

func TestTakeGivenUpLeavesNothing(t *testing.T) {
	s := open(t, testOptions(t, "skept-giveup"))
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if slot, err := s.Take(ctx, egressNone); err == nil {
			s.Give(slot)
		} else if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func TestTakeAfterClose(t *testing.T) {
	s := open(t, testOptions(t, "skept-closed"))
	slot := take(t, s, egressNone)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(t.Context(), egressNone); !errors.Is(err, ErrClosed) {
		t.Errorf("take after close: %v", err)
	}
	if _, err := s.Take(t.Context(), "everything"); err == nil {
		t.Error("an unknown egress was accepted")
	}
	if _, err := os.Stat(slot.NetNS); err != nil {
		t.Errorf("a lent slot went with Close: %v", err)
	}
	s.Give(slot)
	if _, err := os.Stat(slot.NetNS); !os.IsNotExist(err) {
		t.Errorf("%s is left after Give: %v", slot.NetNS, err)
	}
}
