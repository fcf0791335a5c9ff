package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func hasTable(t testing.TB, name string) bool {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == name {
			return true
		}
	}
	return false
}

// world is what is outside the host: a namespace behind the host's uplink,
// which knows a way back to the host's own address only.
type world struct{ ns *os.File }

const (
	worldAddress    = "198.51.100.2"
	metadataAddress = "169.254.169.254" // as a cloud's machines have it
	hostAddress     = "198.51.100.1"
)

func newWorld(t testing.TB, s *Slots) *world {
	t.Helper()
	w := &world{}
	err := s.away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		w.ns, err = os.Open(ownThread)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", TxQLen: -1}, PeerName: "world", PeerNamespace: netlink.NsFd(int(w.ns.Fd()))}
	err = errors.Join(netlink.LinkAdd(pair), bringUp("uplink"), addAddress("uplink", hostAddress+"/24"),
		s.in(w.ns, func() error {
			return errors.Join(bringUp("lo"), bringUp("world"), addAddress("world", worldAddress+"/24"), addAddress("lo", metadataAddress+"/32"))
		}),
		addRoute("uplink", metadataAddress+"/32"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := deleteLink("uplink"); err != nil {
			t.Error(err)
		}
		w.ns.Close()
	})
	return w
}

func addAddress(device, cidr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, a)
}

func addRoute(device, cidr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	_, to, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK})
}

// How long a test tries: what should work may be slow on a busy machine, what
// should not work must fail for as long as one has patience.
const (
	patient = 15 * time.Second
	brief   = 300 * time.Millisecond
)

// sees reports whether a guest gets an answer from a TCP server in that time.
func sees(t testing.TB, s *Slots, g *fakeGuest, address, greeting string, within time.Duration) bool {
	t.Helper()
	c, err := dialFrom(s, g.ns, address, within)
	if err != nil {
		return false
	}
	defer c.Close()
	greeted(t, c, greeting)
	return true
}

func TestNATReachesTheWorldAndNothingElse(t *testing.T) {
	testenv.Need(t, "nft")
	s := open(t, testOptions(t, "skept-nat"))
	other := open(t, testOptions(t, "skept-nat2")) // another daemon, same pool
	w := newWorld(t, s)
	listen(t, s, w.ns, worldAddress+":80", "world")
	listen(t, s, w.ns, metadataAddress+":80", "credentials")
	listen(t, s, s.home, "0.0.0.0:7080", "the daemon")
	listen(t, s, s.home, "127.0.0.1:7081", "the control port")

	var slots []*Slot
	var guests []*fakeGuest
	for _, pool := range []*Slots{s, s, other} {
		slot := take(t, pool, egressNAT)
		defer pool.Give(slot)
		g := bootGuest(t, pool, slot)
		defer g.end()
		listen(t, pool, g.ns, ":8080", "guest")
		slots, guests = append(slots, slot), append(guests, g)
	}
	address := func(i int) string { return slots[i].lease.space.uplink.addr.String() }

	for i, g := range guests {
		if !sees(t, s, g, worldAddress+":80", "world", patient) {
			t.Errorf("guest %d does not reach the world", i)
		}
		c, err := slots[i].Dial(t.Context(), 8080)
		if err != nil {
			t.Fatalf("the daemon does not reach guest %d: %v", i, err)
		}
		greeted(t, c, "guest")
		c.Close()
	}
	var tries sync.WaitGroup
	for name, to := range map[string]string{
		"the host by its address":             hostAddress + ":7080",
		"the host's loopback":                 "127.0.0.1:7081",
		"the next hop":                        nextHop + ":7080",
		"the slot's gateway":                  testGateway.String() + ":7080",
		"the metadata service":                metadataAddress + ":80",
		"another guest":                       address(1) + ":8080",
		"another guest's namespace":           address(1) + ":22",
		"a guest of another daemon":           address(2) + ":8080",
		"the host by the slot's own address":  address(0) + ":7080",
		"the guests' address, in other slots": "172.31.254.6:8080",
	} {
		tries.Go(func() {
			if c, err := dialFrom(s, guests[0].ns, to, 300*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("a guest reaches %s (%s)", name, to)
			}
		})
	}
	tries.Wait()
	// From outside, nobody reaches a guest, even with a route to it.
	if err := s.in(w.ns, func() error { return addRoute("world", "10.211.0.0/16") }); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{address(0) + ":8080", address(0) + ":22"} {
		if c, err := dialFrom(s, w.ns, to, 300*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("the world reaches a guest at %s", to)
		}
	}
	// And the host itself only as the daemon does, from inside.
	if c, err := dialFrom(s, s.home, address(0)+":8080", 300*time.Millisecond); err == nil {
		c.Close()
		t.Error("the host reaches a guest through its uplink")
	}
}

// A guest that uses another source address than its own gets nothing out.
func TestNATRefusesSpoofedSource(t *testing.T) {
	testenv.Need(t, "nft")
	s := open(t, testOptions(t, "skept-spoof"))
	w := newWorld(t, s)
	listen(t, s, w.ns, worldAddress+":80", "world")
	slot := take(t, s, egressNAT)
	defer s.Give(slot)
	g := bootGuest(t, s, slot)
	defer g.end()
	if !sees(t, s, g, worldAddress+":80", "world", patient) {
		t.Fatal("the guest does not reach the world")
	}
	for _, from := range []string{"198.51.100.77", "10.211.0.9", "172.31.254.5"} {
		conn := rawUDP(t, s, w.ns, worldAddress+":9999")
		err := s.in(g.ns, func() error {
			if err := addAddress("eth0", from+"/32"); err != nil {
				return err
			}
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(worldAddress), Port: 9999})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("spoofed"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, seen, err := conn.ReadFrom(make([]byte, 64)); err == nil {
			t.Errorf("a packet with source %s came through, as from %v", from, seen)
		}
		conn.Close()
	}
}

func rawUDP(t testing.TB, s *Slots, ns *os.File, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := s.in(ns, func() (err error) {
		c, err = net.ListenPacket("udp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Name servers are reached on port 53 wherever they are, and on no other port.
func TestNATReachesNameserver(t *testing.T) {
	testenv.Need(t, "nft")
	opts := testOptions(t, "skept-dns")
	opts.Nameservers = []netip.Addr{netip.MustParseAddr(metadataAddress), netip.MustParseAddr(hostAddress)}
	s := open(t, opts)
	w := newWorld(t, s)
	for _, port := range []string{":53", ":80"} {
		listen(t, s, w.ns, metadataAddress+port, "resolver")
		listen(t, s, s.home, hostAddress+port, "resolver")
	}
	slot := take(t, s, egressNAT)
	defer s.Give(slot)
	g := bootGuest(t, s, slot)
	defer g.end()
	for _, ip := range []string{metadataAddress, hostAddress} {
		if !sees(t, s, g, ip+":53", "resolver", patient) {
			t.Errorf("the name server %s is not reached", ip)
		}
		if sees(t, s, g, ip+":80", "resolver", brief) {
			t.Errorf("port 80 of the name server %s is reached", ip)
		}
	}
}

// The host keeps nothing of a slot that has ended: not its connections, not the
// way to its address.
func TestNATSlotIsNotUsedAgain(t *testing.T) {
	testenv.Need(t, "nft")
	s := open(t, testOptions(t, "skept-once"))
	w := newWorld(t, s)
	listen(t, s, w.ns, worldAddress+":80", "world")
	var used []netip.Addr
	for range 3 {
		slot := take(t, s, egressNAT)
		p := slot.lease.space
		g := bootGuest(t, s, slot)
		c, err := dialFrom(s, g.ns, worldAddress+":80", 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if n := flowsOf(t, p.uplink.addr); n == 0 {
			t.Error("the host does not track the connection: the test sees nothing")
		}
		g.end()
		s.Give(slot)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(slot.NetNS); os.IsNotExist(err) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s is still there", slot.NetNS)
			}
		}
		c.Close()
		if n := flowsOf(t, p.uplink.addr); n != 0 {
			t.Errorf("the host still tracks %d connections of %v", n, p.uplink.addr)
		}
		for _, a := range used {
			if a == p.uplink.addr {
				t.Errorf("address %v was used twice in a row", a)
			}
		}
		used = append(used, p.uplink.addr)
	}
}

func flowsOf(t testing.TB, addr netip.Addr) int {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range flows {
		if f.Forward.SrcIP.String() == addr.String() {
			n++
		}
	}
	return n
}

func TestNATPoolRunsOut(t *testing.T) {
	testenv.Need(t, "nft")
	opts := testOptions(t, "skept-small")
	opts.NATPool = mustPrefix("10.212.0.0/30") // .1, .2 and .3, as each is a route of its own
	s := open(t, opts)
	for range 3 {
		defer s.Give(take(t, s, egressNAT))
	}
	_, err := s.Take(t.Context(), egressNAT)
	if err == nil || !strings.Contains(err.Error(), "choose a larger one") {
		t.Errorf("a fourth slot of three addresses: %v", err)
	}
}
