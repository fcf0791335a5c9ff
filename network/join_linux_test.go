package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// pod is a namespace as a CNI plugin leaves it, and one outside that is wired to
// it.
type pod struct {
	s           *Slots // to go about namespaces with
	in, outside *os.File
}

const podAddress, outsideAddress = "10.99.0.2", "10.99.0.1"

func newPod(t *testing.T) *pod {
	t.Helper()
	testenv.Need(t, "root", "netns", "tap", "nft")
	if err := sandbox(); err != nil {
		t.Fatal(err)
	}
	home, err := os.Open(ownThread)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{s: &Slots{home: home}}
	for _, ns := range []**os.File{&p.in, &p.outside} {
		err := p.s.away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
			*ns, err = os.Open(ownThread)
			return errors.Join(err, bringUp("lo"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { p.in.Close(); p.outside.Close(); home.Close() })
	err = p.s.in(p.in, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "veth", PeerNamespace: netlink.NsFd(int(p.outside.Fd()))}
		return errors.Join(netlink.LinkAdd(pair), bringUp("eth0"), addAddress("eth0", podAddress+"/24"))
	})
	if err == nil {
		err = p.s.in(p.outside, func() error { return errors.Join(bringUp("veth"), addAddress("veth", outsideAddress+"/24")) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pod) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.in.Fd()) }

func (p *pod) join(t *testing.T, ports Ports) (*Joined, *fakeGuest) {
	t.Helper()
	o := JoinOptions{GuestMAC: testGuestMAC, HostMAC: testHostMAC, Guest: testGuest, Gateway: testGateway, Ports: ports}
	has, err := HasIPv6(p.path())
	if err != nil {
		t.Fatal(err)
	}
	if has {
		o.Guest6, o.Gateway6 = testGuest6, testGateway6
	}
	j, err := Join(p.path(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	g := bootGuest(t, p.s, &j.Slot)
	if has {
		p.must(t, g.ns, func() error { return addIPv6("eth0", testGuest6, testGateway6) })
	}
	return j, g
}

func (p *pod) must(t *testing.T, ns *os.File, do func() error) {
	t.Helper()
	if err := p.s.in(ns, do); err != nil {
		t.Fatal(err)
	}
}

// addIPv6 gives a device an address at once, and a default route where there is a
// gateway.
func addIPv6(dev string, address, gateway netip.Addr) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	err = errors.Join(writeSysctls([]sysctl{{"ipv6/conf/" + dev + "/disable_ipv6", "0"}}),
		netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
	if err == nil && gateway.IsValid() {
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	}
	return err
}

// from says who answers at an address; "" nobody.
func (p *pod) from(t *testing.T, ns *os.File, address string, within time.Duration) string {
	t.Helper()
	c, err := dialFrom(p.s, ns, address, within)
	if err != nil {
		return ""
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	n, _ := c.Read(b)
	return string(b[:n])
}

// The guest of a pod answers at the pod's address and, at its ports, at 127.0.0.1;
// what sidecars listen for is theirs, and the agent is nobody's but the shim's.
func TestJoinedGuest(t *testing.T) {
	p := newPod(t)
	j, g := p.join(t, Ports{Loopback: []int{8080}})
	listen(t, p.s, g.ns, "0.0.0.0:8080", "guest")
	listen(t, p.s, g.ns, "0.0.0.0:9000", "guest")
	listen(t, p.s, g.ns, "0.0.0.0:10", "agent")
	listen(t, p.s, p.in, "0.0.0.0:9000", "sidecar")
	listen(t, p.s, p.in, "127.0.0.1:8022", "queue")
	listen(t, p.s, p.outside, outsideAddress+":80", "world")
	for _, tt := range []struct {
		ns            *os.File
		address, want string
	}{
		{p.outside, podAddress + ":8080", "guest"},
		{p.outside, podAddress + ":9000", "sidecar"},
		{p.in, "127.0.0.1:8080", "guest"},
		{p.in, "127.0.0.1:9000", "sidecar"},
		{p.in, "127.0.0.1:8022", "queue"},
		{g.ns, outsideAddress + ":80", "world"},
		// What the pod's others serve at their loopback is the guest's at the gateway.
		{g.ns, testGateway.String() + ":8022", "queue"},
		{g.ns, testGateway.String() + ":9000", "sidecar"},
	} {
		if got := p.from(t, tt.ns, tt.address, patient); got != tt.want {
			t.Errorf("at %s %q answers, want %q", tt.address, got, tt.want)
		}
	}
	for _, tt := range []struct {
		ns      *os.File
		address string
	}{{p.outside, podAddress + ":10"}, {p.in, "172.31.254.2:10"}, {p.in, "127.0.0.1:10"}} {
		if got := p.from(t, tt.ns, tt.address, brief); got != "" {
			t.Errorf("at %s %q answers: want nobody", tt.address, got)
		}
	}
	c, err := j.Dial(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	greeted(t, c, "agent")
	c.Close()
}

// Who serves at a pod's 127.0.0.1 sees its guest there, by TCP and UDP; one that has its
// namespace for itself is led nowhere.
func TestJoinedLoopback(t *testing.T) {
	p := newPod(t)
	_, g := p.join(t, Ports{Loopback: []int{8080}, Closed: true})
	var l net.Listener
	var u net.PacketConn
	p.must(t, p.in, func() (err error) {
		if l, err = net.Listen("tcp4", "127.0.0.1:9001"); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", "127.0.0.1:9001")
		return err
	})
	defer l.Close()
	defer u.Close()
	c, err := dialFrom(p.s, g.ns, testGateway.String()+":9001", patient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if ip := s.RemoteAddr().(*net.TCPAddr).IP; !ip.IsLoopback() {
		t.Errorf("the sidecar is asked from %v", ip)
	}
	go func() { _, _ = s.Write([]byte("hello")) }()
	greeted(t, c, "hello")

	var asks net.Conn
	p.must(t, g.ns, func() (err error) { asks, err = net.Dial("udp4", testGateway.String()+":9001"); return err })
	defer asks.Close()
	if _, err := asks.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	for _, end := range []interface{ SetReadDeadline(time.Time) error }{u, asks} {
		if err := end.SetReadDeadline(time.Now().Add(patient)); err != nil {
			t.Fatal(err)
		}
	}
	n, from, err := u.ReadFrom(b)
	if err != nil || string(b[:n]) != "ping" || !from.(*net.UDPAddr).IP.IsLoopback() {
		t.Fatalf("the sidecar got %q from %v, %v", b[:n], from, err)
	}
	if _, err := u.WriteTo([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := asks.Read(b); err != nil || string(b[:n]) != "pong" {
		t.Errorf("the guest got %q, %v", b[:n], err)
	}

	alone := newPod(t)
	_, g = alone.join(t, Ports{Alone: true})
	listen(t, alone.s, alone.in, "127.0.0.1:9001", "nobody's")
	if got := alone.from(t, g.ns, testGateway.String()+":9001", brief); got != "" {
		t.Errorf("the guest of a namespace of its own reaches %q", got)
	}
}

// echo answers datagrams with themselves.
func echo(t *testing.T, s *Slots, ns *os.File, address string) {
	t.Helper()
	var c net.PacketConn
	if err := s.in(ns, func() (err error) { c, err = net.ListenPacket("udp6", address); return err }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
}

func askUDP(t *testing.T, s *Slots, ns *os.File, address string) string {
	t.Helper()
	var c net.Conn
	if err := s.in(ns, func() (err error) { c, err = net.Dial("udp6", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 64)
	for range 5 { // one may be lost
		if _, err := c.Write([]byte("ping")); err != nil {
			return err.Error()
		}
		if err := c.SetReadDeadline(time.Now().Add(patient / 5)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b); err == nil {
			return string(b[:n])
		}
	}
	return ""
}

// A pod that has an IPv6 address is its guest's at that, too; without IPv4 as well.
func TestJoinedIPv6(t *testing.T) {
	const podAddress6, outsideAddress6 = "fd99::2", "fd99::1"
	p := newPod(t)
	if has, err := HasIPv6(p.path()); err != nil || has { // but for that of the link
		t.Errorf("it has an IPv6 address before: %v, %v", has, err)
	}
	p.must(t, p.in, func() error { return addIPv6("eth0", netip.MustParseAddr(podAddress6), netip.Addr{}) })
	p.must(t, p.outside, func() error { return addIPv6("veth", netip.MustParseAddr(outsideAddress6), netip.Addr{}) })
	ports := Ports{Loopback: []int{8080}, Closed: true}
	if has, err := HasIPv6(p.path()); err != nil || !has {
		t.Fatalf("it has an IPv6 address: %v, %v", has, err)
	}
	j, g := p.join(t, ports)
	listen(t, p.s, g.ns, "[::]:8080", "guest")
	listen(t, p.s, g.ns, "[::]:9000", "guest")
	listen(t, p.s, g.ns, "[::]:10", "agent")
	listen(t, p.s, p.in, "[::]:9000", "sidecar")
	listen(t, p.s, p.outside, "["+outsideAddress6+"]:80", "world")
	if got := p.from(t, p.outside, "["+podAddress6+"]:8080", brief); got != "" {
		t.Errorf("closed, %q answers", got)
	}
	if err := j.Open(ports); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		ns            *os.File
		address, want string
		within        time.Duration
	}{
		{p.outside, "[" + podAddress6 + "]:8080", "guest", patient},
		{p.outside, "[" + podAddress6 + "]:9000", "sidecar", patient},
		{p.outside, "[" + podAddress6 + "]:10", "", brief},
		{p.in, "[::1]:8080", "guest", patient},
		{p.in, "[::1]:9000", "sidecar", patient},
		{p.in, "[" + testGuest6.String() + "]:10", "", brief},
		{g.ns, "[" + outsideAddress6 + "]:80", "world", patient},
	} {
		if got := p.from(t, tt.ns, tt.address, tt.within); got != tt.want {
			t.Errorf("at %s %q answers, want %q", tt.address, got, tt.want)
		}
	}
	echo(t, p.s, g.ns, "[::]:8080")
	for _, at := range []struct {
		ns      *os.File
		address string
	}{{p.outside, "[" + podAddress6 + "]:8080"}, {p.in, "[::1]:8080"}} {
		if got := askUDP(t, p.s, at.ns, at.address); got != "ping" {
			t.Errorf("by UDP at %s %q answers", at.address, got)
		}
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	p.must(t, p.in, func() error {
		if hasTable(t, slotTable) {
			t.Error("the table is left")
		}
		return nil
	})
}

// Where nobody else is, all of 127.0.0.1 is the guest's.
func TestJoinedAlone(t *testing.T) {
	p := newPod(t)
	_, g := p.join(t, Ports{Alone: true})
	listen(t, p.s, g.ns, "0.0.0.0:1234", "guest")
	for _, at := range []struct {
		ns      *os.File
		address string
	}{{p.in, "127.0.0.1:1234"}, {p.outside, podAddress + ":1234"}} {
		if got := p.from(t, at.ns, at.address, patient); got != "guest" {
			t.Errorf("at %s %q answers", at.address, got)
		}
	}
	listen(t, p.s, g.ns, "0.0.0.0:11", "agent")
	if got := p.from(t, p.in, "127.0.0.1:11", brief); got != "" {
		t.Errorf("the agent's port answers %q", got)
	}
}

// Closed, it is as if nobody listened there, but to who dials for the shim; the guest
// itself reaches others. Opened, it is as ever.
func TestJoinedClosed(t *testing.T) {
	p := newPod(t)
	ports := Ports{Loopback: []int{8080}, Closed: true}
	j, g := p.join(t, ports)
	listen(t, p.s, g.ns, "0.0.0.0:8080", "guest")
	listen(t, p.s, p.outside, outsideAddress+":80", "world")
	ask := func(want string, within time.Duration) {
		t.Helper()
		if got := p.from(t, p.outside, podAddress+":8080", within); got != want {
			t.Errorf("from outside %q answers, want %q", got, want)
		}
		if got := p.from(t, p.in, "127.0.0.1:8080", within); got != want {
			t.Errorf("from inside %q answers, want %q", got, want)
		}
	}
	ask("", brief)
	if got := p.from(t, g.ns, outsideAddress+":80", patient); got != "world" {
		t.Errorf("to the guest %q answers", got)
	}
	c, err := j.Dial(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	greeted(t, c, "guest")
	c.Close()
	if err := j.Open(ports); err != nil {
		t.Fatal(err)
	}
	ask("guest", patient)
}

// Joined again, after a shim that was killed, and left: nothing stays.
func TestJoinLeavesNothing(t *testing.T) {
	p := newPod(t)
	o := JoinOptions{GuestMAC: testGuestMAC, HostMAC: testHostMAC, Guest: testGuest, Gateway: testGateway}
	if _, err := Join(p.path(), o); err != nil { // killed: never closed
		t.Fatal(err)
	}
	j, err := Join(p.path(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	if _, err := Join(p.path(), o); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Leave(p.path()), Leave("/nonexistent")); err != nil {
		t.Error(err)
	}
	_ = p.s.in(p.in, func() error {
		if _, err := netlink.LinkByName(tapName); err == nil {
			t.Errorf("%s is left", tapName)
		}
		if hasTable(t, slotTable) {
			t.Error("the table is left")
		}
		return nil
	})
	if _, err := Join("/nonexistent", o); err == nil {
		t.Error("a namespace that is not there was joined")
	}
	own, err := Join("", o)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}
