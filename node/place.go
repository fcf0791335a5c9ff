package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/vmm"
)

// place is where one microVM runs: a network slot, and a private directory for
// its process. Who takes it gives it back when the process has ended.
type place struct {
	id    string // of the process: an instance's, though not of one that took over a shell's
	slot  *network.Slot
	dir   string
	shell vmm.Shell     // the process that waits there; nil for none
	ahead *memory.Ahead // serves its memory until a restore's session does; nil for none
}

// take takes a place for a process of that id.
func (n *Node) take(ctx context.Context, id, egress string) (*place, error) {
	slot, err := n.net.Take(ctx, egress)
	if err != nil {
		return nil, fmt.Errorf("taking a network slot: %w", err)
	}
	dir := n.machineDir(id)
	if err := makePrivate(dir); err != nil {
		n.net.Give(slot)
		return nil, err
	}
	return &place{id: id, slot: slot, dir: dir}, nil
}

// leave gives it back; a process that waits there, and has become no machine, ends.
func (n *Node) leave(at *place) {
	if at.shell != nil {
		if err := at.shell.Kill(); err != nil {
			n.log.Error("ending a VMM that was started ahead", "instance", at.id, "error", err)
		}
	}
	if at.ahead != nil {
		if err := at.ahead.Close(); err != nil {
			n.log.Error("letting go of memory that was served ahead", "instance", at.id, "error", err)
		}
	}
	_ = os.RemoveAll(at.dir)
	n.net.Give(at.slot)
}

// seat takes a new place for the instance, which has looked for one since a time.
func (n *Node) seat(ctx context.Context, inst *instance, began time.Time) error {
	at, err := n.take(ctx, inst.id, inst.dep.fn.Egress)
	if err != nil {
		return err
	}
	inst.sit(ctx, at, began)
	return nil
}

// sit makes the place the instance's, which it began to look for at a time.
func (i *instance) sit(ctx context.Context, at *place, began time.Time) {
	i.place, i.phases = at, api.Phases{Slot: time.Since(began)}
	tracing.Part(ctx, "slot", began, i.phases.Slot)
	i.tellPhase("slot", i.phases.Slot)
	i.onRelease(func() { i.place = nil; i.pool.n.leave(at) })
}

// tookOver says that a process waited at the instance's place.
func (i *instance) tookOver() bool { return i.place != nil && i.place.shell != nil }

// host is the place as a VMM wants it told.
func (n *Node) host(at *place) vmm.Host {
	uid, gid := 0, 0
	if n.cfg.UIDBase >= 0 {
		uid, gid = n.cfg.UIDBase+at.slot.Index, n.cfg.GID
	}
	return vmm.Host{
		ID: at.id, Dir: at.dir, NetNS: at.slot.NetNS, Tap: at.slot.Tap,
		MAC: append(net.HardwareAddr(nil), guest.MAC...), UID: uid, GID: gid,
		Env: []string{n.cfg.mark()}, Limits: n.cfg.Limits,
	}
}

// machineDir is the private directory of the machine of that id.
func (n *Node) machineDir(id string) string { return filepath.Join(n.cfg.RunDir, id) }

// makePrivate makes a directory of the daemon's for what belongs to one machine.
// The VMM's user may not write to it: what it writes is files that it was given.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the instance's directory: %w", err)
	}
	return nil
}
