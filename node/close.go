package node

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// shut makes the pool refuse requests for that reason, those that wait too. The
// mutex is held.
func (p *pool) shut(why error) {
	p.closed = why
	p.stopTimers()
	p.failWaiters(why)
	for _, w := range p.alone {
		w.grant(nil, why)
	}
	p.alone = nil
	if p.claims {
		p.withdraw()
	}
}

// drained waits until the pool has no instance; after the timeout it ends those
// whose requests go on.
func (p *pool) drained(timeout time.Duration) {
	p.mu.Lock()
	empty := make(chan struct{})
	if len(p.instances) == 0 {
		close(empty)
	}
	p.empty = empty
	p.mu.Unlock()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	select {
	case <-empty:
		return
	case <-deadline.C:
	}
	p.mu.Lock()
	for _, inst := range p.instances {
		inst.cancel(errRemoved)
	}
	p.mu.Unlock()
	<-empty // only the tear-down is left
}

// stopGently lets the function's server end by itself.
func (n *Node) stopGently(inst *instance) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.StopGrace+time.Second)
	defer cancel()
	if err := inst.vm.Stop(ctx, n.cfg.StopGrace); err != nil {
		n.log.Debug("stopping a function's server", "function", inst.pool.name, "instance", inst.id, "error", err)
	}
}

// Drain refuses new and waiting requests with ErrDraining, lets those in flight
// be answered until ctx or the drain timeout ends, and ends every instance.
// Records are still taken: whoever answers requests ends before Close. It is
// idempotent; each call returns when that is done.
func (n *Node) Drain(ctx context.Context) {
	n.drained.Do(func() { n.endAll(ctx) })
}

// Close drains the node and releases everything but what is meant to last. It is
// idempotent; each call returns when that is done.
func (n *Node) Close(ctx context.Context) error {
	n.Drain(ctx)
	n.closing.Do(func() {
		if root := n.cfg.Limits.CgroupRoot; root != "" {
			_ = unix.Rmdir(root) // not there, or not empty: then the next Open sees to it
		}
		n.leaveRunDir()
		n.closeErr = errors.Join(n.closeDisks(), n.rec.close(), n.logs.close(), n.net.Close(), n.db.close(), n.lock.Close())
	})
	return n.closeErr
}

func (n *Node) endAll(ctx context.Context) {
	n.mu.Lock() // so that spawn has either counted its goroutine or refuses it
	n.draining = true
	n.mu.Unlock()
	close(n.drain)
	n.shells.close()
	for _, p := range n.allPools() {
		p.mu.Lock()
		p.shut(ErrDraining)
		p.endAll(ErrDraining, true, nil)
		p.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
	defer cancel()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		n.wg.Wait()
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		n.log.Warn("ending instances with requests in flight", "reason", context.Cause(ctx))
	}
	n.cancel(ErrDraining)
	<-idle
}
