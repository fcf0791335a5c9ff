package network

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
	began := time.Now()
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
	// A SYN was dropped if it had to be sent twice; a slow machine may take so
	// long for it all that the kernel sends it again on its own.
	const first = time.Second
	if n := retransmitted(t, s, slot); n != 0 && time.Since(began) < first {
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
