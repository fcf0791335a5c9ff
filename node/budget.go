package node

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
)

// budget is what all instances together may use: their number and their
// guests' memory. Whoever finds it used up waits for the next change.
type budget struct {
	maxInstances int
	maxMiB       int // 0: no limit

	mu        sync.Mutex // guards what follows; taken after a pool's
	instances int
	mib       int
	changed   chan struct{} // closed and replaced when something is given back
	starved   map[*pool]struct{}

	starving atomic.Bool // whether starved has any: read for every request
}

func newBudget(instances, mib int) *budget {
	return &budget{maxInstances: instances, maxMiB: mib, changed: make(chan struct{}), starved: map[*pool]struct{}{}}
}

// take reserves an instance with mib of memory. If it cannot, and p is not nil,
// p is told by give to try again.
func (b *budget) take(mib int, p *pool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.instances >= b.maxInstances || b.maxMiB > 0 && b.mib+mib > b.maxMiB {
		if p != nil {
			b.starved[p] = struct{}{}
			b.starving.Store(true)
		}
		return false
	}
	b.instances++
	b.mib += mib
	return true
}

// give returns what take reserved, and the pools that were waiting for it.
func (b *budget) give(mib int) []*pool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.instances--
	b.mib -= mib
	close(b.changed)
	b.changed = make(chan struct{})
	var starved []*pool
	for p := range b.starved {
		starved = append(starved, p)
	}
	clear(b.starved)
	b.starving.Store(false)
	return starved
}

// fits says why an instance of that size could never start.
func (b *budget) fits(mib int) error {
	if b.maxMiB > 0 && mib > b.maxMiB {
		return fmt.Errorf("memory_mib is %d, more than the %d MiB that this node has for all instances", mib, b.maxMiB)
	}
	return nil
}

// reserve is take for deployments and snapshots, which may wait: it asks for an
// idle instance to be ended when there is no room.
func (n *Node) reserve(ctx context.Context, mib int) error {
	if err := n.budget.fits(mib); err != nil {
		return err
	}
	for {
		n.budget.mu.Lock()
		changed := n.budget.changed
		n.budget.mu.Unlock()
		if n.budget.take(mib, nil) {
			return nil
		}
		n.evictIdle()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the node to have room for another instance: %w", context.Cause(ctx))
		}
	}
}

// giveBack returns a reservation and lets those who waited try again. No pool's
// mutex may be held.
func (n *Node) giveBack(mib int) {
	for _, p := range n.budget.give(mib) {
		p.poke()
	}
}

// evictIdle ends the instance that has been idle for longest on the whole node,
// because another function needs its place. No pool's mutex may be held.
func (n *Node) evictIdle() {
	var victim *instance
	var since time.Time
	for _, p := range n.allPools() {
		p.mu.Lock()
		if inst := p.oldestIdle(); inst != nil && (victim == nil || inst.idleSince.Before(since)) {
			victim, since = inst, inst.idleSince
		}
		p.mu.Unlock()
	}
	if victim == nil {
		return
	}
	p := victim.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	// It may have got a request since; then the next that is given back serves.
	if victim.state == api.InstanceIdle {
		p.end(victim, errEvicted, false)
	}
}
