package network

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/skep-dev/skep/internal/testenv"
)

// crash ends a pool as a kill would: what it made on the host stays.
func crash(t testing.TB, s *Slots) {
	t.Helper()
	s.mu.Lock()
	s.closed = true
	close(s.stop)
	spaces := append(s.free[egressNone], s.free[egressNAT]...)
	s.mu.Unlock()
	s.work.Wait()
	for _, p := range spaces {
		p.ns.Close()
	}
	s.home.Close()
}

// strangers are things on the host that look like a pool's, but are not.
func strangers(t testing.TB, prefix string) (check func()) {
	t.Helper()
	var other nat
	other.init(Options{Prefix: prefix, NATPool: defaultNATPool})
	device := other.veths + "7" // as if another prefix had the same hash
	names := []string{"somebody-0", prefix + "-x", prefix + "-1-2", prefix + "-01", prefix}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(netnsDir, n), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device, TxQLen: -1}, PeerName: "peer7"}
	if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetAlias(link, "skep another-prefix")); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: prefix + "-table"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		for _, n := range names {
			if err := os.Remove(filepath.Join(netnsDir, n)); err != nil {
				t.Errorf("somebody else's namespace is gone: %v", err)
			}
		}
		if l, err := netlink.LinkByName(device); err != nil {
			t.Errorf("somebody else's device is gone: %v", err)
		} else if err := netlink.LinkDel(l); err != nil {
			t.Error(err)
		}
		if !hasTable(t, prefix+"-table") {
			t.Error("somebody else's table is gone")
		}
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}
}

func TestReclaimAfterCrash(t *testing.T) {
	testenv.Need(t, "root", "netns", "tap", "nft")
	opts := testOptions(t, "skept-crash")
	opts.Ahead = 2
	s := open(t, testOptions(t, "skept-bystander")) // another daemon that runs on
	bystander := take(t, s, egressNAT)
	defer s.Give(bystander)

	crashed, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	lent := []*Slot{take(t, crashed, egressNone), take(t, crashed, egressNAT), take(t, crashed, egressNAT)}
	busy := sleeper(t, crashed, lent[0].lease.space.ns)
	// A kill between the making of the name and that of the namespace.
	if err := os.WriteFile(filepath.Join(netnsDir, opts.Prefix+"-99"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	crash(t, crashed)
	for _, l := range lent {
		l.lease.space.ns.Close()
	}
	stillThere := strangers(t, opts.Prefix)

	again, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	left := again.Leftovers()
	if len(left) != 1 || left[0].Name != lent[0].Name || len(left[0].PIDs) != 1 || left[0].PIDs[0] != busy.Process.Pid {
		t.Errorf("leftovers %+v, want %s with process %d", left, lent[0].Name, busy.Process.Pid)
	}
	for _, l := range lent[1:] {
		if _, err := netlink.LinkByName(l.lease.space.uplink.veth); err == nil {
			t.Errorf("%s is left", l.lease.space.uplink.veth)
		}
	}
	if hasTable(t, opts.Prefix) {
		t.Error("the table is left although nobody asked for egress yet")
	}
	slot := take(t, again, egressNAT) // works beside the leftover
	if slot.Name == lent[0].Name {
		t.Errorf("%s was lent while a process is in it", slot.Name)
	}
	again.Give(slot)
	stop(busy)
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	stillThere()
	checkNothingLeft(t, opts.Prefix)
	if names, _ := filepath.Glob(filepath.Join(netnsDir, opts.Prefix+"*")); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
	// The bystander noticed nothing.
	g := bootGuest(t, s, bystander)
	defer g.end()
	listen(t, s, g.ns, ":8080", "hello")
	c, err := bystander.Dial(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeted(t, c, "hello")
	if !hasTable(t, "skept-bystander") {
		t.Error("the other daemon's table is gone")
	}
}

func TestSlotIsUsableWithOrdinaryTools(t *testing.T) {
	s := open(t, testOptions(t, "skept-tools"))
	slot := take(t, s, egressNone)
	defer s.Give(slot)
	err := s.in(slot.lease.space.ns, func() error {
		link, err := netlink.LinkByName(slot.Tap)
		if err != nil {
			return err
		}
		if a := link.Attrs(); a.HardwareAddr.String() != testHostMAC.String() || a.Flags&net.FlagUp == 0 || a.TxQLen < 500 {
			t.Errorf("tap: %+v", a)
		}
		neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		if len(neighbours) != 1 || neighbours[0].State != netlink.NUD_PERMANENT || neighbours[0].HardwareAddr.String() != testGuestMAC.String() {
			t.Errorf("neighbours %+v", neighbours)
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err == nil && len(routes) != 1 {
			t.Errorf("a slot without egress has %d routes, want that to the guest: %v", len(routes), routes)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestProbes(t *testing.T) {
	testenv.Need(t, "root", "netns", "tap", "nft")
	testenv.NoLeaks(t)
	if err := Probe(); err != nil {
		t.Error(err)
	}
	if err := ProbeNAT(); err != nil {
		t.Error(err)
	}
}
