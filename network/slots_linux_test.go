package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

func TestDialReachesTheGuest(t *testing.T) {
	s := open(t, testOptions(t, "skept-dial"))
	slot := take(t, s, egressNone)
	defer s.Give(slot)
	g := bootGuest(t, s, slot)
	defer g.end()
	listen(t, s, g.ns, ":8080", "hello")

	c, err := slot.Dial(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeted(t, c, "hello")
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("a %T, want a TCP connection", c)
	}
	if got := c.RemoteAddr().String(); got != "172.31.254.2:8080" {
		t.Errorf("remote address %s", got)
	}
	raw, _ := tcp.SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		if v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 {
			t.Errorf("TCP_NODELAY is %d, %v", v, err)
		}
	})

	if _, err := slot.Dial(t.Context(), 9); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	// Nothing else is there: not the host, not the world.
	for _, address := range []string{"127.0.0.1:1", "198.51.100.2:80"} {
		if c, err := dialFrom(s, g.ns, address, 200*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("a guest without egress reached %s", address)
		}
	}
}

func TestDialHonoursContext(t *testing.T) {
	s := open(t, testOptions(t, "skept-ctx"))
	slot := take(t, s, egressNone)
	defer s.Give(slot)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := slot.Dial(ctx, 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a VMM: %v", err)
	}
	tap := attach(t, s, slot) // and nobody answers
	defer tap.Close()

	ctx, cancel = context.WithCancel(t.Context())
	go cancel()
	if _, err := slot.Dial(ctx, 80); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := slot.Dial(ctx, 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
	if _, err := (&Slot{}).Dial(t.Context(), 80); err == nil {
		t.Error("a slot of no pool dialled")
	}
}

func TestDialWaitsForTheVMM(t *testing.T) {
	s := open(t, testOptions(t, "skept-early"))
	slot := take(t, s, egressNone)
	defer s.Give(slot)
	g := newGuest(t, s)
	defer g.end()
	listen(t, s, g.ns, ":8080", "hello")
	dialled := make(chan error, 1)
	go func() {
		c, err := slot.Dial(t.Context(), 8080)
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	time.Sleep(5 * time.Millisecond) // any time: before or after the dial has begun
	g.run(attach(t, s, slot))
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	// A SYN was dropped if it had to be sent twice.
	if n := retransmitted(t, s, slot); n != 0 {
		t.Errorf("%d segments were sent again", n)
	}
}

// retransmitted is the namespace's counter of TCP segments sent again.
func retransmitted(t testing.TB, s *Slots, slot *Slot) int {
	t.Helper()
	var table []byte
	err := s.in(slot.lease.space.ns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		n, err := strconv.Atoi(fields[slices.Index(names, "RetransSegs")])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatal("no TCP counters")
	return 0
}

// A SYN that is sent while the vCPUs do not run yet waits in the tap.
func TestSYNWaitsForTheGuest(t *testing.T) {
	s := open(t, testOptions(t, "skept-syn"))
	slot := take(t, s, egressNone)
	defer s.Give(slot)
	g := newGuest(t, s)
	defer g.end()
	listen(t, s, g.ns, ":8080", "hello")
	tap := attach(t, s, slot)

	type result struct {
		c   net.Conn
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		c, err := slot.Dial(t.Context(), 8080)
		dialled <- result{c, err}
	}()
	// The guest runs once the SYN is there: poll, don't read.
	p := []unix.PollFd{{Fd: int32(tap.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 5000); n != 1 {
		t.Fatalf("no SYN in the tap: %v", err)
	}
	if err := unix.SetNonblock(int(tap.Fd()), true); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(tap.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	tap.Close()
	g.run(os.NewFile(uintptr(fd), "tap"))
	began := time.Now()
	r := <-dialled
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.c.Close()
	greeted(t, r.c, "hello")
	t.Logf("connected %v after the guest ran", time.Since(began))
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

// However a Dial and a Give meet, the Dial ends, and never at the next guest.
func TestGiveEndsDials(t *testing.T) {
	s := open(t, testOptions(t, "skept-meet"))
	slot := take(t, s, egressNone)
	defer func() { s.Give(slot) }()
	for round := range 6 {
		var tap *os.File
		if round%2 == 0 {
			tap = attach(t, s, slot) // a VMM that is never resumed
		}
		var dials sync.WaitGroup
		for i := range 10 {
			dials.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Microsecond) // spread over the Give
				if c, err := slot.Dial(t.Context(), 8080); err == nil {
					c.Close()
					t.Error("connected, to nobody")
				}
			})
		}
		time.Sleep(time.Millisecond)
		if tap != nil {
			tap.Close()
		}
		s.Give(slot)
		slot = takeSame(t, s, slot)
		tap = attach(t, s, slot)
		dials.Wait()
		if err := tap.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := tap.Read(make([]byte, 2000)); err == nil {
			t.Errorf("the next guest sees a packet of %d bytes", n)
		}
		tap.Close()
	}
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
