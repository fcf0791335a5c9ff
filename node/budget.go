package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/scale"
)

// budget is what all instances together may use: their number and their memory,
// the guests' and the VMMs' own. Who finds it used up makes a claim. Claims are
// met in the order in which they came, whatever their size, so that each has its
// turn: while there are any, nothing is taken past them.
type budget struct {
	maxInstances int
	maxMiB       int // 0: no limit
	overheadMiB  int // of each instance's VMM; set before there is any

	mu      sync.Mutex // guards what follows; taken after a pool's
	used    amount     // by instances
	leaving amount     // of that, by those which end to make room
	claims  []*claim
	holders map[*pool]int // instances that each has

	claimed atomic.Bool // whether there are claims: read for every request
}

// amount of instances, and of their guests' memory.
type amount struct{ instances, mib int }

func (a amount) plus(b amount) amount  { return amount{a.instances + b.instances, a.mib + b.mib} }
func (a amount) minus(b amount) amount { return amount{a.instances - b.instances, a.mib - b.mib} }

// claim is one instance that someone waits to have room for: a pool, which is told
// to try again when it is its turn, or a deployment or snapshot, for which the room
// is taken when ready is closed.
type claim struct {
	mib   int
	pool  *pool
	ready chan struct{} // nil for a pool's
}

func newBudget(instances, mib int) *budget {
	return &budget{maxInstances: instances, maxMiB: mib, holders: map[*pool]int{}}
}

func (b *budget) fitsBeside(used amount, mib int) bool {
	vmms := (used.instances + 1) * b.overheadMiB
	return used.instances < b.maxInstances && (b.maxMiB == 0 || used.mib+mib+vmms <= b.maxMiB)
}

// roomToWait says whether so many VMMs may wait beside what runs: memory that an
// instance needs, or that somebody waits for, is not theirs.
func (b *budget) roomToWait(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.claims) == 0 && (b.maxMiB == 0 || b.used.mib+(b.used.instances+n)*b.overheadMiB <= b.maxMiB)
}

// take reserves an instance with mib of memory for p. If it cannot, p has a claim
// and is told when to try again. With a nil p, whose instance nobody waits for,
// there is no claim.
func (b *budget) take(mib int, p *pool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := p != nil && len(b.claims) > 0 && b.claims[0].pool == p
	if (mine || len(b.claims) == 0) && b.fitsBeside(b.used, mib) {
		if mine {
			b.drop(0)
		}
		b.hold(mib, p)
		return true
	}
	if p != nil && !slices.ContainsFunc(b.claims, func(c *claim) bool { return c.pool == p }) {
		b.add(&claim{mib: mib, pool: p})
	}
	return false
}

// hold counts an instance as used; the mutex is held, as in add, drop, short and
// share.
func (b *budget) hold(mib int, p *pool) {
	b.used = b.used.plus(amount{1, mib})
	if p != nil {
		b.holders[p]++
	}
}

func (b *budget) add(c *claim) {
	b.claims = append(b.claims, c)
	b.claimed.Store(true)
}

func (b *budget) drop(i int) {
	b.claims = slices.Delete(b.claims, i, i+1)
	b.claimed.Store(len(b.claims) > 0)
}

// short says that the claims need more than what is free and what will be when
// those have ended that end for them.
func (b *budget) short() bool {
	used := b.used.minus(b.leaving)
	for _, c := range b.claims {
		if !b.fitsBeside(used, c.mib) {
			return true
		}
		used = used.plus(amount{1, c.mib})
	}
	return false
}

// share is what a function may keep while others have claims: an equal part of the
// places and of the memory for each that has some or claims some; no place when
// there are more of those than places.
func (b *budget) share() (places, mib int) {
	of := len(b.holders)
	for _, c := range b.claims {
		if c.pool == nil || b.holders[c.pool] == 0 {
			of++
		}
	}
	return b.maxInstances / max(1, of), b.maxMiB / max(1, of)
}

// give returns what take or a claim reserved; p is nil for what was no pool's.
// leaving: the instance ended to make room. The caller must call serve.
func (b *budget) give(mib int, p *pool, leaving bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = b.used.minus(amount{1, mib})
	if leaving {
		b.leaving = b.leaving.minus(amount{1, mib})
	}
	if p == nil {
		return
	}
	if b.holders[p]--; b.holders[p] == 0 {
		delete(b.holders, p)
	}
}

// adopt makes a place that was no pool's p's.
func (b *budget) adopt(p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holders[p]++
}

// forget drops p's claim, since nobody waits there any more. The caller must call
// serve.
func (b *budget) forget(p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.IndexFunc(b.claims, func(c *claim) bool { return c.pool == p }); i >= 0 {
		b.drop(i)
	}
}

// turn is how long a function keeps the only instance that it has, though others
// have claims and there are too few places for one each: so that a start serves
// more than one request.
const turn = time.Second

// yield decides whether an instance of p is to end for the sake of the claims, and
// counts it as leaving if so. wanted: it has requests, or p has some for it; since:
// when it became ready.
func (b *budget) yield(p *pool, mib int, wanted bool, since time.Time) bool {
	if !b.claimed.Load() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.short() {
		return false
	}
	have := b.holders[p]
	if places, memory := b.share(); wanted && have <= places && (b.maxMiB == 0 || have*mib <= memory) {
		return false
	}
	if wanted && have == 1 && time.Since(since) < turn {
		return false
	}
	b.leaving = b.leaving.plus(amount{1, mib})
	return true
}

// next meets the claims at the head of the queue that fit. It returns the pool
// whose turn it is, with its claim, or nil.
func (b *budget) next() *claim {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.claims) > 0 && b.fitsBeside(b.used, b.claims[0].mib) {
		c := b.claims[0]
		if c.pool != nil {
			return c
		}
		b.drop(0)
		b.hold(c.mib, nil)
		close(c.ready)
	}
	return nil
}

// pass drops a claim whose turn was not made use of.
func (b *budget) pass(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.claims) > 0 && b.claims[0] == c {
		b.drop(0)
	}
}

// fits says why an instance of that size could never start.
func (b *budget) fits(mib int) error {
	if b.maxMiB > 0 && mib+b.overheadMiB > b.maxMiB {
		return fmt.Errorf("memory_mib is %d, and its VMM needs %d: more than the %d MiB that this node has for all instances (memory_budget_mib)", mib, b.overheadMiB, b.maxMiB)
	}
	return nil
}

// reserve is take for deployments and snapshots, which may wait for their turn.
func (n *Node) reserve(ctx context.Context, mib int) error {
	b := n.budget
	if err := b.fits(mib); err != nil {
		return err
	}
	c := &claim{mib: mib, ready: make(chan struct{})}
	b.mu.Lock()
	b.add(c)
	b.mu.Unlock()
	n.serve()
	n.evictIdle()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	i := slices.Index(b.claims, c)
	if i >= 0 {
		b.drop(i)
	}
	b.mu.Unlock()
	if i < 0 { // its turn came just now
		n.giveBack(mib, nil, false)
	} else {
		n.serve() // those behind it may fit
	}
	return fmt.Errorf("waiting for the node to have room for another instance: %w", context.Cause(ctx))
}

// giveBack returns a reservation and lets those who waited have it. No pool's
// mutex may be held, as in serve and evictIdle.
func (n *Node) giveBack(mib int, p *pool, leaving bool) {
	n.budget.give(mib, p, leaving)
	n.serve()
}

// serve lets those have their turn for whom there is room.
func (n *Node) serve() {
	for c := n.budget.next(); c != nil; c = n.budget.next() {
		c.pool.poke()
		n.budget.pass(c) // unless it took its turn, or nobody waits there any more
	}
}

// evictIdle ends the instances that have been idle for longest on the whole node,
// as many as the claims need.
func (n *Node) evictIdle() {
	for {
		var victim *instance
		var since time.Time
		var rank float64
		var ranked bool
		for _, p := range n.allPools() {
			p.mu.Lock()
			if inst := p.oldestIdle(); inst != nil {
				r, has := p.rank()
				sooner := inst.idleSince.Before(since)
				if has {
					sooner = r < rank
				}
				// Those without a rank go before those that have one.
				if victim == nil || !has && ranked || has == ranked && sooner {
					victim, since, rank, ranked = inst, inst.idleSince, r, has
				}
			}
			p.mu.Unlock()
		}
		if victim == nil || !victim.pool.evict(victim) {
			return
		}
	}
}

// evict ends an idle instance if the claims need its place; false: they do not. It
// may have got a request since it was chosen; then others are looked for.
func (p *pool) evict(inst *instance) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inst.state != api.InstanceIdle || inst.visits > 0 {
		return true
	}
	return p.yield(inst)
}

// yield ends an instance for the sake of others, if it should. The mutex is held.
func (p *pool) yield(inst *instance) bool {
	wanted := inst.active > 0 || inst.state != api.InstanceIdle || len(p.queue) > 0
	if inst.state == api.InstanceDraining || inst.state == api.InstanceStopped || inst.leaving || inst.visits > 0 {
		return false
	}
	if !p.n.budget.yield(p, inst.dep.fn.MemoryMiB, wanted, inst.readySince) {
		return false
	}
	inst.leaving = true
	p.end(inst, errEvicted, false)
	if r, ok := p.scaling.policy.(scale.Ranker); ok {
		r.Evicted(len(p.instances) - 1)
	}
	return true
}
