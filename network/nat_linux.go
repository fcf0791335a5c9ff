package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nat is the host's side of egress. Nothing of it exists until the first slot
// with egress is made.
type nat struct {
	opts  Options
	veths string // prefix of the names of the host's ends
	alias string // of every host's end: whose it is

	mu    sync.Mutex // guards what follows
	ready bool       // forwarding is on and the table there
	next  netip.Addr // where the search for a free address goes on
}

// uplink is one slot's way out.
type uplink struct {
	veth string     // the host's end
	addr netip.Addr // of the slot's end
}

const (
	upName = "up0" // the slot's end
	// The next hop is nobody's address: the host's end answers by its MAC.
	nextHop = "169.254.1.1"
)

var (
	hostEndMAC = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x01, 0x00, 0x01}
	slotEndMAC = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x01, 0x00, 0x02}
)

func (n *nat) init(opts Options) {
	sum := sha256.Sum256([]byte(opts.Prefix))
	n.opts = opts
	// Interface names have 15 characters: the prefix goes in as a hash, and in
	// full into the alias.
	n.veths = "skv" + hex.EncodeToString(sum[:3]) + "-"
	n.alias = "skep " + opts.Prefix
	n.next = opts.NATPool.Addr().Next()
}

// connectUplink gives a space its way out.
func (s *Slots) connectUplink(p *space) (err error) {
	if err := s.nat.prepare(); err != nil {
		return err
	}
	up := &uplink{veth: s.nat.veths + strconv.Itoa(p.index)}
	p.uplink = up
	link, err := s.nat.addVeth(up.veth, p.ns)
	if err != nil {
		return err
	}
	if up.addr, err = s.nat.route(link); err != nil {
		return err
	}
	return s.in(p.ns, func() error {
		if err := insideUplink(up.addr); err != nil {
			return err
		}
		return addSlotRules(s.opts)
	})
}

// prepare turns forwarding on and makes the table of rules, once.
func (n *nat) prepare() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ready {
		return nil
	}
	// The rules come first: with forwarding on and no rules, guests could reach
	// more than they may.
	if err := addHostRules(n.opts, n.veths); err != nil {
		return err
	}
	if err := n.turnForwardingOn(); err != nil {
		return err
	}
	n.ready = true
	return nil
}

// turnForwardingOn sets ip_forward. It stays on when the daemon ends: others
// may have come to need it meanwhile.
func (n *nat) turnForwardingOn() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	now, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading whether the host forwards: %w", err)
	}
	if strings.TrimSpace(string(now)) != "0" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("turning IPv4 forwarding on (egress nat needs net.ipv4.ip_forward=1): %w", err)
	}
	n.opts.Logger.Info("turned IPv4 forwarding on, for functions with egress nat")
	return nil
}

// addVeth makes the pair, one end here and one in ns, and brings this one up.
func (n *nat) addVeth(name string, ns *os.File) (netlink.Link, error) {
	pair := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: name, HardwareAddr: hostEndMAC, TxQLen: -1},
		PeerName:         upName,
		PeerHardwareAddr: slotEndMAC,
		PeerNamespace:    netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("making the veth pair %s: %w", name, err)
	}
	err := writeSysctls([]sysctl{
		{"ipv6/conf/" + name + "/disable_ipv6", "1"}, // before it is up: not even a link-local address
		{"ipv4/conf/" + name + "/rp_filter", "1"},
		{"ipv4/conf/" + name + "/accept_redirects", "0"},
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		{"ipv4/conf/" + name + "/arp_ignore", "8"}, // it answers for no address of the host
	})
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(link, n.alias) // the kernel takes none at the making
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("bringing %s up: %w", name, err)
	}
	return link, nil
}

// route finds a free address of the pool and routes it over the link. The
// kernel decides what is free: it refuses a second route to one address, which
// keeps two daemons with one pool apart.
func (n *nat) route(link netlink.Link) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	size := 1 << (32 - n.opts.NATPool.Bits())
	for range size {
		addr := n.next
		if n.next = addr.Next(); !n.opts.NATPool.Contains(n.next) {
			n.next = n.opts.NATPool.Addr().Next()
		}
		ip := net.IP(addr.AsSlice())
		err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)}})
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: ip, HardwareAddr: slotEndMAC})
		}
		if err != nil {
			return netip.Addr{}, fmt.Errorf("routing %v to %s: %w", addr, link.Attrs().Name, err)
		}
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("no address of the NAT pool %v is free: choose a larger one", n.opts.NATPool)
}

// insideUplink sets up the slot's end, in the calling thread's namespace.
func insideUplink(addr netip.Addr) error {
	link, err := netlink.LinkByName(upName)
	if err != nil {
		return fmt.Errorf("finding %s: %w", upName, err)
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(addr.AsSlice()), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(link, own); err != nil {
		return fmt.Errorf("giving %s the address %v: %w", upName, addr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", upName, err)
	}
	hop := net.ParseIP(nextHop).To4()
	err = netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: hop, HardwareAddr: hostEndMAC})
	if err != nil {
		return fmt.Errorf("giving %s its next hop: %w", upName, err)
	}
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: hop, Flags: int(netlink.FLAG_ONLINK)})
	if err != nil {
		return fmt.Errorf("routing out over %s: %w", upName, err)
	}
	return nil
}

// cutUplink removes the host's end, and with it the other end and the route,
// and what the host remembers of its connections: a guest that is ended leaves
// them open, and they would fill the host's table for days.
func (s *Slots) cutUplink(up *uplink) error {
	if err := deleteLink(up.veth); err != nil {
		return err
	}
	if !up.addr.IsValid() {
		return nil
	}
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddIP(netlink.ConntrackOrigSrcIP, net.IP(up.addr.AsSlice())); err != nil {
		return fmt.Errorf("forgetting connections of %v: %w", up.addr, err)
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter); err != nil {
		s.log.Warn("the host still remembers connections of a slot that is gone", "address", up.addr, "error", err)
	}
	return nil
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// reclaim removes the veths and the table of an earlier daemon.
func (n *nat) reclaim() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		// Without an alias, a crash came right after its making.
		if l.Type() == "veth" && strings.HasPrefix(a.Name, n.veths) && (a.Alias == n.alias || a.Alias == "") {
			if err := deleteLink(a.Name); err != nil {
				return err
			}
		}
	}
	return deleteTable(n.opts.Prefix)
}

// remove removes what prepare made, but for the forwarding.
func (n *nat) remove() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ready {
		return nil
	}
	n.ready = false
	return deleteTable(n.opts.Prefix)
}
