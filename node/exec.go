package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
)

// waitsForVisits says that an instance which ends for that reason lives on while
// somebody is in it: to see why it hangs is what they may be there for. One whose
// function is replaced or removed, or whose daemon ends, does not.
func waitsForVisits(why error) bool {
	return slices.ContainsFunc([]error{errExpired, errEvicted, errAlone, errHangs, errNoAnswer},
		func(gentle error) bool { return errors.Is(why, gentle) })
}

// Visit connects to where further processes start, and files are copied, in the
// instance of that id, or, without one, in the function's that was used last: see
// guest.Exec, guest.CopyIn and guest.CopyOut. It starts none.
//
// Until the connection is closed the instance does not end for want of requests.
// It is neither a request nor does it take the place of one. When the instance
// ends, so does the connection, and Err says why.
func (n *Node) Visit(ctx context.Context, function, id string) (*Visit, error) {
	inst, err := n.enter(function, id)
	if err != nil {
		return nil, err
	}
	conn, err := inst.vm.Dial(ctx, guest.ExecPort)
	if err != nil {
		inst.pool.leaveVisit(inst)
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("its agent is of an older skep, which runs nothing beside the function: %w", err)
		}
		return nil, fmt.Errorf("entering instance %s of %s: %w", inst.id, inst.pool.name, err)
	}
	v := &Visit{ReadWriteCloser: conn, inst: inst}
	v.unwatch = context.AfterFunc(inst.ctx, func() { conn.Close() })
	return v, nil
}

// Visit is a connection into an instance.
type Visit struct {
	io.ReadWriteCloser
	inst    *instance
	unwatch func() bool
	once    sync.Once
}

// Instance is the id of the one that it leads to.
func (v *Visit) Instance() string { return v.inst.id }

// Err says why the instance ends; nil while it does not.
func (v *Visit) Err() error {
	if v.inst.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("instance %s ends: %w", v.inst.id, context.Cause(v.inst.ctx))
}

// Close ends the connection and lets go of the instance. It is idempotent.
func (v *Visit) Close() error {
	err := v.ReadWriteCloser.Close()
	v.once.Do(func() {
		v.unwatch()
		v.inst.pool.leaveVisit(v.inst)
	})
	return err
}

// enter finds an instance and holds it.
func (n *Node) enter(function, id string) (*instance, error) {
	pools := n.allPools()
	if id == "" {
		p := n.pool(function)
		if p == nil || p.current.Load() == nil {
			return nil, fmt.Errorf("%q: %w", function, ErrNoFunction)
		}
		pools = []*pool{p}
	}
	for _, p := range pools {
		if inst := p.visit(id); inst != nil {
			return inst, nil
		}
	}
	if id != "" {
		return nil, fmt.Errorf("instance %q: %w of that id", id, ErrNotRunning)
	}
	return nil, fmt.Errorf("function %q: %w", function, ErrNotRunning)
}

// visit holds the instance of that id, or for "" the one that was used last.
func (p *pool) visit(id string) *instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found *instance
	var used time.Time
	for _, inst := range p.instances {
		if inst.state != api.InstanceIdle && inst.state != api.InstanceBusy || id != "" && inst.id != id {
			continue
		}
		if at := inst.usedAt(); found == nil || at.After(used) {
			found, used = inst, at
		}
	}
	if found != nil {
		found.visits++
		found.visited = true
	}
	return found
}

// usedAt is when the instance was used last. The pool's mutex is held.
func (i *instance) usedAt() time.Time {
	at := i.idleSince
	for l := range i.leases {
		if l.began.After(at) {
			at = l.began
		}
	}
	return at
}

// leaveVisit lets go of an instance, whose keep-alive begins anew.
func (p *pool) leaveVisit(inst *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	inst.visits--
	switch {
	case inst.visits > 0:
	case inst.state == api.InstanceDraining:
		p.endIfUnused(inst)
	case inst.state == api.InstanceIdle:
		inst.idleSince = time.Now()
		if !p.yield(inst) { // others may have waited for its place
			p.armJanitor()
		}
		p.pump()
	}
}
