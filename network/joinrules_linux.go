package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ports say what of a namespace is its guest's.
type Ports struct {
	// Loopback are those at which the guest answers at 127.0.0.1, and ::1. None: at all of
	// them, for a namespace in which nobody else listens.
	Loopback []int
	// Alone says that nobody else is in the namespace.
	Alone bool
	// Closed keeps everybody but Dial out, as if nobody listened, until Open. The
	// guest itself reaches others.
	Closed bool
}

// agentMark is on packets of connections that Dial makes. Others of the namespace
// may not speak to the guest's agent: a mark takes CAP_NET_ADMIN.
const agentMark = 0x736b6570

// agentPorts are those of the guest's agent, lowest and highest.
const agentFirst, agentLast = 10, 11

// addJoinRules makes the tables of a namespace that was joined, one for each family of
// addresses that it has:
//
//	chain prerouting  (nat) not from the tap, to an address of the namespace, TCP or
//	                  UDP that nobody here listens for: to the guest
//	chain output      (nat) to 127.0.0.0/8 or ::1, TCP or UDP to the guest's ports: to the guest
//	chain shared      (nat, prerouting) from the tap to the gateway, TCP or UDP, where the guest
//	                  is not alone: to 127.0.0.1
//	chain sharer      (nat, input) what comes of it: from 127.0.0.1
//	chain postrouting (nat) from there to the guest: from the gateway
//	                  (nat) from the guest: masquerade
//	chain guard       (filter, output) to the agent's ports, without the mark: drop
//	chain forward     (filter) to the agent's ports: drop
func addJoinRules(p Ports, all ...guestRules) error {
	return withJoinTables(all, func(g guestRules, t rules) { t.addJoin(g, p) })
}

// openJoinRules adds those that closed Ports are without.
func openJoinRules(p Ports, all ...guestRules) error {
	return withJoinTables(all, func(g guestRules, t rules) { t.addInward(g, p) })
}

// guestRules are what differs between the tables of two families of addresses.
type guestRules struct {
	family   nftables.TableFamily
	guest    netip.Addr
	gateway  netip.Addr // at which the guest asks for what others serve at their loopback; invalid: nowhere
	loopback netip.Prefix
}

func rules4(opts Options) guestRules {
	guest, _ := netip.AddrFromSlice(opts.Guest)
	gateway, _ := netip.AddrFromSlice(opts.Gateway)
	return guestRules{nftables.TableFamilyIPv4, guest.Unmap(), gateway.Unmap(), netip.MustParsePrefix("127.0.0.0/8")}
}

func rules6(guest netip.Addr) guestRules {
	return guestRules{nftables.TableFamilyIPv6, guest, netip.Addr{}, netip.MustParsePrefix("::1/128")}
}

func (g guestRules) host() netip.Prefix { return netip.PrefixFrom(g.guest, g.guest.BitLen()) }

// withJoinTables adds to the families' tables, to all or none.
func withJoinTables(all []guestRules, add func(guestRules, rules)) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables (modprobe nf_tables): %w", err)
	}
	for _, g := range all {
		add(g, rules{c: c, table: c.AddTable(&nftables.Table{Family: g.family, Name: slotTable})})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("making the nftables tables of a guest (modprobe nft_nat nft_masq nft_socket nft_fib_ipv4 nft_fib_ipv6): %w", err)
	}
	return nil
}

func (t rules) addJoin(g guestRules, p Ports) {
	toTap, notToTap := interfaceName(expr.MetaKeyOIFNAME, tapName), notInterface(expr.MetaKeyOIFNAME, tapName)
	post := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	guard := t.chain("guard", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	if !p.Closed {
		t.addInward(g, p)
	}
	if !p.Alone && g.gateway.IsValid() {
		t.addShared(g)
	}
	t.add(post, toTap, source(g.loopback, expr.CmpOpEq), []expr.Any{&expr.Masq{}})
	t.add(post, notToTap, source(g.host(), expr.CmpOpEq), []expr.Any{&expr.Masq{}})
	for _, number := range []uint16{agentFirst, agentLast} {
		// Not by the device: what was dnat'ed in this hook still shows the one before.
		t.add(guard, destination(g.host()), port(unix.IPPROTO_TCP, number), unmarked(), verdict(expr.VerdictDrop))
		t.add(forward, destination(g.host()), port(unix.IPPROTO_TCP, number), verdict(expr.VerdictDrop))
	}
}

// addShared leads what the guest asks the gateway for to those who serve at the
// namespace's 127.0.0.1, as from there: many take no others.
func (t rules) addShared(g guestRules) {
	fromTap := interfaceName(expr.MetaKeyIIFNAME, tapName)
	shared := t.chain("shared", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	sharer := t.chain("sharer", nftables.ChainTypeNAT, nftables.ChainHookInput, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	here := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		t.add(shared, fromTap, destination(netip.PrefixFrom(g.gateway, g.gateway.BitLen())), protocol(proto), dnat(here))
	}
	t.add(sharer, fromTap, destination(g.loopback), snat(here))
}

// addInward adds what leads others to the guest.
func (t rules) addInward(g guestRules, p Ports) {
	notFromTap := notInterface(expr.MetaKeyIIFNAME, tapName)
	pre := t.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	out := t.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		if !p.Alone {
			t.add(pre, notFromTap, protocol(proto), listened(), verdict(expr.VerdictAccept))
		}
		t.add(pre, notFromTap, protocol(proto), local(), dnat(g.guest))
		if p.Alone && len(p.Loopback) == 0 {
			t.add(out, protocol(proto), destination(g.loopback), dnat(g.guest))
		}
		for _, number := range p.Loopback {
			t.add(out, destination(g.loopback), port(proto, uint16(number)), dnat(g.guest))
		}
	}
}

func notInterface(key expr.MetaKey, name string) []expr.Any {
	full := make([]byte, unix.IFNAMSIZ)
	copy(full, name)
	return compareMeta(key, expr.CmpOpNeq, full)
}

func protocol(proto byte) []expr.Any {
	return compareMeta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{proto})
}

// listened matches what a socket of the namespace would get.
func listened() []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyWildcard, Register: 1},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{1}},
	}
}

// local matches what is for an address of the namespace.
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func unmarked() []expr.Any {
	return compareMeta(expr.MetaKeyMARK, expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(agentMark))
}

func dnat(to netip.Addr) []expr.Any   { return translated(expr.NATTypeDestNAT, to) }
func snat(from netip.Addr) []expr.Any { return translated(expr.NATTypeSourceNAT, from) }

func translated(kind expr.NATType, to netip.Addr) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: kind, Family: family, RegAddrMin: 1},
	}
}
