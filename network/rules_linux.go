package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// slotTable is the name of the table within a slot's namespace.
const slotTable = "skep"

// addHostRules makes the table of the host's namespace, in one transaction:
//
//	chain input       veths: to a name server, port 53, accept; else drop
//	chain forward     veths: to a name server, port 53, accept
//	                  veths: from outside the pool, to link-local addresses (a
//	                         cloud's metadata), to the pool, to veths: drop; else accept
//	                  to veths: answers accept, else drop
//	chain postrouting from the pool, not to veths: masquerade
//
// An accept here does not overrule another table's drop.
func addHostRules(opts Options, veths string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables (modprobe nf_tables): %w", err)
	}
	t := rules{c: c, table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: opts.Prefix})}
	early := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)
	from, to, elsewhere := interfacePrefix(expr.MetaKeyIIFNAME, veths), interfacePrefix(expr.MetaKeyOIFNAME, veths), notInterfacePrefix(expr.MetaKeyOIFNAME, veths)

	input := t.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, early, nftables.ChainPolicyAccept)
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, early, nftables.ChainPolicyAccept)
	for _, ns := range opts.Nameservers {
		if !ns.Is4() {
			continue
		}
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			for _, chain := range []*nftables.Chain{input, forward} {
				t.add(chain, from, source(opts.NATPool, expr.CmpOpEq), destination(netip.PrefixFrom(ns, 32)), port(proto, 53), verdict(expr.VerdictAccept))
			}
		}
	}
	t.add(input, from, verdict(expr.VerdictDrop))
	t.add(forward, from, source(opts.NATPool, expr.CmpOpNeq), verdict(expr.VerdictDrop))
	t.add(forward, from, destination(netip.MustParsePrefix("169.254.0.0/16")), verdict(expr.VerdictDrop))
	t.add(forward, from, destination(opts.NATPool), verdict(expr.VerdictDrop))
	t.add(forward, from, to, verdict(expr.VerdictDrop))
	t.add(forward, from, verdict(expr.VerdictAccept))
	t.add(forward, to, answers(), verdict(expr.VerdictAccept))
	t.add(forward, to, verdict(expr.VerdictDrop))

	post := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.add(post, source(opts.NATPool, expr.CmpOpEq), elsewhere, []expr.Any{&expr.Masq{}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("making the nftables table %s (modprobe nft_masq nft_chain_nat): %w", opts.Prefix, err)
	}
	return nil
}

// addSlotRules makes the table of a slot's namespace: the guest, by its own
// address, goes out; answers come in; nothing reaches the namespace itself.
func addSlotRules(opts Options) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	t := rules{c: c, table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: slotTable})}
	out, in := interfaceName(expr.MetaKeyOIFNAME, upName), interfaceName(expr.MetaKeyIIFNAME, upName)
	guest, _ := netip.AddrFromSlice(opts.Guest)

	input := t.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	t.add(input, in, verdict(expr.VerdictDrop))
	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.add(forward, out, source(netip.PrefixFrom(guest, 32), expr.CmpOpEq), verdict(expr.VerdictAccept))
	t.add(forward, in, answers(), verdict(expr.VerdictAccept))
	post := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.add(post, out, []expr.Any{&expr.Masq{}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("making the nftables table of a slot: %w", err)
	}
	return nil
}

// deleteTable removes the table of that name for IPv4, if there is one.
func deleteTable(name string) error { return deleteTableOf(nftables.TableFamilyIPv4, name) }

func deleteTableOf(family nftables.TableFamily, name string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	// Asked first: a transaction that fails has the kernel wait for
	// a grace period of RCU, some ten milliseconds that each start would have.
	if _, err = c.ListTableOfFamily(name, family); err == nil {
		c.DelTable(&nftables.Table{Family: family, Name: name})
		err = c.Flush()
	}
	// A kernel without nf_tables has no table either.
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return fmt.Errorf("removing the nftables table %s: %w", name, err)
}

// rules adds to one table.
type rules struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (t rules) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return t.c.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy})
}

func (t rules) add(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	t.c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: all})
}

// The parts of rules: each loads register 1 and compares it.

func interfacePrefix(key expr.MetaKey, prefix string) []expr.Any {
	return compareMeta(key, expr.CmpOpEq, []byte(prefix)) // fewer bytes than a name: a prefix
}

func notInterfacePrefix(key expr.MetaKey, prefix string) []expr.Any {
	return compareMeta(key, expr.CmpOpNeq, []byte(prefix))
}

func interfaceName(key expr.MetaKey, name string) []expr.Any {
	full := make([]byte, unix.IFNAMSIZ)
	copy(full, name)
	return compareMeta(key, expr.CmpOpEq, full)
}

func compareMeta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

// A source stands at another place in each family's header; a destination comes after it.
func source(p netip.Prefix, op expr.CmpOp) []expr.Any {
	if p.Addr().Is6() {
		return address(8, p, op)
	}
	return address(12, p, op)
}

func destination(p netip.Prefix) []expr.Any {
	if p.Addr().Is6() {
		return address(24, p, expr.CmpOpEq)
	}
	return address(16, p, expr.CmpOpEq)
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// address compares the address at that offset of the header with a prefix.
func address(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	n := p.Addr().BitLen() / 8
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(n)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func port(proto byte, number uint16) []expr.Any {
	return append(compareMeta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{proto}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)})
}

// answers are packets of connections that were begun from the other side.
func answers() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
