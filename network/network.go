// Package network makes slots ahead of time: a network namespace with a tap
// device in it, so that a cold start pays for neither. Every guest has the same
// address and MAC; what keeps them apart is the namespace. It is the third
// station of a cold invocation: package node takes a slot before it starts a
// VMM and gives it back when the instance has ended; guest and gateway reach
// the function by dialling inside the namespace.
//
// What a slot looks like, and what of it exists only with egress "nat":
//
//	 namespace PREFIX-N                              the host's namespace
//	┌─────────────────────────────────────────────┐
//	│ VMM ── tap0  Gateway/30, HostMAC            │
//	│        guest Guest,      GuestMAC (static)  │
//	│        │ forward, masquerade     (nat only) │   route ADDR/32, table PREFIX
//	│        up0   ADDR/32 of NATPool ────────────┼── skvXXXXXXN ── forward, masquerade ── out
//	└─────────────────────────────────────────────┘
//
// With egress "host" the daemon listens at Gateway for the services of Options
// and passes their bytes on; to the kernel the slot is one without egress.
//
// A slot without egress is used again: its tap is replaced and every connection
// of the last instance reset in between, so that no packet of one instance can
// reach the next. A slot with egress has its own connection tracking and is
// thrown away.
package network

import (
	"context"
	"net"
)

// Slot is a namespace and a tap, lent to one instance at a time.
type Slot struct {
	Name  string // of the namespace
	NetNS string // its path
	Tap   string // name of the tap device within it
	Index int    // small, unique among the slots of this daemon; used to derive uids

	// unexported: what is needed to dial and to release
	impl
}

// Dial opens a TCP connection to the guest's port from inside the slot's
// namespace. It first waits until a VMM has attached to the tap, since the
// kernel drops what is sent before. From then on a SYN waits in the tap's queue
// until the vCPUs run, which is what makes it worthwhile to dial before that.
//
// The connection is a *net.TCPConn with TCP_NODELAY. It does not outlive the
// lending of the slot: Give resets it. ctx bounds the wait, and should have a
// deadline or end with the VMM.
func (s *Slot) Dial(ctx context.Context, port int) (net.Conn, error) { return s.dial(ctx, port) }

// Pool lends slots. It is implemented by *Slots.
type Pool interface {
	// Take lends a slot with the given egress (api.EgressNone, api.EgressHost,
	// api.EgressNAT).
	Take(ctx context.Context, egress string) (*Slot, error)
	// Give takes a slot back when no process is left in it. A slot that cannot
	// be made clean is destroyed rather than lent again.
	Give(s *Slot)
	// Close destroys all slots that are not lent; those that are, when they are
	// given back.
	Close() error
}
