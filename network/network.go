// Package network makes slots ahead of time: a network namespace with a tap
// device in it, so that a cold start pays for neither. Every guest has the same
// address and MAC; what keeps them apart is the namespace. Package node takes a
// slot before it starts a VMM and gives it back when the instance has ended;
// the gateway reaches the function by dialling inside the namespace.
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
// namespace. A SYN sent before the vCPUs run waits in the tap's queue.
func (s *Slot) Dial(ctx context.Context, port int) (net.Conn, error) { return s.dial(ctx, port) }

// Pool lends slots. It is implemented by *Slots.
type Pool interface {
	// Take lends a slot with the given egress (api.EgressNone, api.EgressNAT).
	Take(ctx context.Context, egress string) (*Slot, error)
	// Give takes a slot back when no process is left in it. A slot that cannot
	// be made clean is destroyed rather than lent again.
	Give(s *Slot)
	// Close destroys all slots that are not lent.
	Close() error
}
