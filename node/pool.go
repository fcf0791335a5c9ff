package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/scale"
)

// pool is one function: its deployment, its instances and who waits for them.
type pool struct {
	n       *Node
	name    string
	current atomic.Pointer[deployment] // nil when removed; written under mu
	before  atomic.Pointer[former]     // what a rollback most likely wants; nil: not looked up yet

	mu        sync.Mutex // guards what follows and the marked fields of instances
	instances map[string]*instance
	free      []*instance // that can take a request now; the last used is last
	queue     []*waiter   // for any instance, first come first served
	alone     []*waiter   // for an instance of their own that may not start yet
	closed    error       // why it takes no requests any more

	// What a request and a start have taken lately, for the scaling policy; of the
	// current deployment, startKind the last that there was.
	service, startCost time.Duration
	startKind          api.StartKind

	scaling scaling

	claims bool // waits for its turn with the node's budget

	backoff    *backoff.ExponentialBackOff // grows with starts that failed in a row
	retryAt    time.Time                   // no start before
	retryTimer *time.Timer

	snapshotting bool        // one is being made
	stopSnapshot func(error) // ends the making in the background
	snapshotAt   time.Time   // not before, after one failed
	remoteAt     time.Time   // the object store is not asked for a snapshot before
	published    *deployment // that has a snapshot as far as we know

	empty chan struct{} // closed when the last instance is gone, if someone waits for that
}

func (n *Node) newPool(name string) *pool {
	return &pool{n: n, name: name, instances: map[string]*instance{}, backoff: newBackoff()}
}

// newBackoff waits 100 ms before the next start, twice as long after each that
// failed, and at most 10 s; within a half of that by chance, so that functions
// that failed together do not start together again and again.
func newBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval, b.RandomizationFactor = 100*time.Millisecond, 2, 10*time.Second, 0.5
	b.Reset()
	return b
}

// forgive lets starts happen at once again. The mutex is held.
func (p *pool) forgive() {
	p.backoff.Reset()
	p.retryAt = time.Time{}
}

// pump gives free instances to those who wait and starts what is missing. The
// mutex is held. Everything that changes what could be done calls it.
func (p *pool) pump() {
	d := p.current.Load()
	if d == nil || p.closed != nil {
		return
	}
	had := p.claims
	p.claims = false
	defer func() {
		if had && !p.claims {
			p.withdraw()
		}
	}()
	for len(p.queue) > 0 {
		inst := p.takeFree()
		if inst == nil {
			break
		}
		w := p.queue[0]
		p.queue = p.queue[1:]
		w.grant(p.lend(inst, w.arrived, true))
	}
	for len(p.alone) > 0 {
		w := p.alone[0]
		if len(p.instances) >= d.fn.MaxInstances {
			if idle := p.oldestIdle(); idle != nil {
				p.end(idle, errEvicted, false)
			}
			break
		}
		inst := p.launch(d, w)
		if inst == nil {
			break
		}
		p.alone = p.alone[1:]
	}
	p.scale(d)
}

// withdraw takes back the pool's claim, since nobody waits that is worth a start.
// The mutex is held.
func (p *pool) withdraw() {
	p.claims = false
	p.n.budget.forget(p)
	p.n.spawn(p.n.serve)
}

// load counts for the scaling policy. The mutex is held.
func (p *pool) load(d *deployment) scale.Load {
	now := time.Now()
	l := scale.Load{
		Waiting: len(p.queue), Concurrency: d.fn.Concurrency, Target: targetOf(d), Min: d.fn.MinInstances, Max: d.fn.MaxInstances,
		Start: p.startCost, Service: p.service,
	}
	for _, inst := range p.instances {
		switch {
		case inst.state == api.InstanceStarting && inst.alone == nil && inst.dep.alike(d):
			l.Starting++
			l.Underway = append(l.Underway, now.Sub(inst.created))
		case inst.state == api.InstanceIdle:
			l.Idle++
		default:
			l.Busy++
		}
		l.Active += inst.active
		if inst.free {
			l.Free += d.fn.Concurrency - inst.active
		}
		if inst.returns() {
			for lease := range inst.leases {
				l.Running = append(l.Running, now.Sub(lease.began))
			}
			for range d.fn.Concurrency - inst.active {
				if inst.probation { // most pass at once
					l.Running = append(l.Running, now.Sub(inst.suspected))
				}
			}
		}
	}
	return l
}

// launch starts an instance, for w alone if that is not nil, unless it may not
// be yet: then pump is called again when that changes. The mutex is held.
func (p *pool) launch(d *deployment, w *waiter) *instance {
	if wait := time.Until(p.retryAt); wait > 0 {
		if p.retryTimer == nil {
			p.retryTimer = time.AfterFunc(wait, p.retry)
		}
		return nil
	}
	if !p.takePlace(d, w != nil || len(p.queue) > 0) {
		return nil
	}
	inst := p.newInstance(d, cmp.Or(w, p.unasked()))
	if w != nil {
		inst.alone, inst.wanted, inst.policy = w, w.opts.Start, w.opts.Policy
		if inst.policy != "" {
			inst.wanted = api.StartRestore
		}
		w.inst = inst
	}
	p.instances[inst.id] = inst
	if !p.n.spawn(func() { p.run(inst) }) {
		delete(p.instances, inst.id)
		inst.cancel(ErrDraining)
		inst.tellGone(ErrDraining)
		p.n.budget.give(d.fn.MemoryMiB, p, false) // the node drains: nobody waits for it
		return nil
	}
	return inst
}

// unasked is the first who waits for any instance and for whom none is started yet; nil:
// there is nobody. The mutex is held.
func (p *pool) unasked() *waiter {
	for _, w := range p.queue {
		if !w.asked {
			return w
		}
	}
	return nil
}

// poke is pump for callers without the mutex.
func (p *pool) poke() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pump()
}

func (p *pool) retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retryTimer = nil
	p.pump()
}

// run is the life of an instance, from its start until all is given back.
func (p *pool) run(inst *instance) {
	err := p.n.start(inst.ctx, inst)
	p.mu.Lock()
	p.started(inst, err)
	p.mu.Unlock()
	if err == nil {
		p.live(inst)
		return
	}
	p.stopped(inst)
}

// started puts an instance into service whose start is over, or tells those
// who waited why it is not. The mutex is held.
func (p *pool) started(inst *instance, err error) {
	if err != nil {
		p.startFailed(inst, err)
		return
	}
	p.forgive()
	if inst.alone == nil && inst.dep.alike(p.current.Load()) {
		p.startTook(inst.kind, time.Since(inst.created))
	}
	if inst.state != api.InstanceStarting || inst.ctx.Err() != nil {
		if inst.alone != nil {
			inst.alone.grant(nil, p.closedOr(errReplaced))
		}
		return // told to end meanwhile: live sees to it
	}
	inst.to(api.InstanceIdle)
	inst.idleSince, inst.readySince = time.Now(), time.Now()
	switch w := inst.alone; {
	case !inst.dep.alike(p.current.Load()) || p.closed != nil:
		p.end(inst, errReplaced, false)
		if w != nil {
			w.grant(nil, p.closedOr(errReplaced))
		}
	case w != nil && w.left:
		p.end(inst, errAlone, false)
	case w != nil:
		inst.full = true
		w.grant(p.lend(inst, w.arrived, true))
	default:
		p.setFree(inst)
		p.armJanitor()
		p.snapshotIfMissing(inst)
	}
	p.pump()
}

// startTook notes what a start has taken. What one kind takes says nothing of
// another. The mutex is held.
func (p *pool) startTook(kind api.StartKind, d time.Duration) {
	if p.startKind != kind {
		p.startKind, p.startCost = kind, 0
	}
	p.startCost = scale.Average(p.startCost, d)
}

func (p *pool) closedOr(err error) error {
	if p.closed != nil {
		return p.closed
	}
	return err
}

// startFailed fails those who waited for this start and have no other instance
// to hope for, and holds back the next one for a while. The mutex is held.
func (p *pool) startFailed(inst *instance, err error) {
	cause := context.Cause(inst.ctx)
	told := inst.state != api.InstanceStarting || cause != nil // to end: no fault of the function's
	if inst.state == api.InstanceStarting {
		inst.err = err
		inst.to(api.InstanceDraining)
	}
	if w := inst.alone; w != nil {
		w.grant(nil, err)
		return
	}
	if told {
		return
	}
	p.n.log.Warn("start failed", "function", p.name, "instance", inst.id, "error", err)
	p.retryAt = time.Now().Add(p.backoff.NextBackOff())
	for _, other := range p.instances {
		if other != inst && other.alone == nil && !other.full &&
			(other.state == api.InstanceStarting || other.state == api.InstanceIdle || other.state == api.InstanceBusy) {
			return // it may serve them yet
		}
	}
	p.failWaiters(err)
}

func (p *pool) failWaiters(err error) {
	for _, w := range p.queue {
		w.grant(nil, err)
	}
	p.queue = nil
}

// live watches an instance that is ready until it ends.
func (p *pool) live(inst *instance) {
	cause := inst.vm.Wait(inst.ctx)
	if errors.Is(cause, errNoAnswer) {
		cause = inst.awaitReason(cause)
	}
	p.mu.Lock()
	p.dropFree(inst)
	inst.err = cause
	if inst.state != api.InstanceDraining {
		inst.to(api.InstanceDraining)
	}
	close(inst.gone)
	grace := inst.grace
	p.mu.Unlock()
	switch {
	case errors.Is(cause, errTakeSnapshot):
		p.snapshotServed(inst)
	case p.isOwnReason(cause):
		if grace && p.n.cfg.StopGrace > 0 {
			p.n.stopGently(inst)
		}
	default:
		if microvm.SnapshotsFault(cause) {
			p.n.snaps.Restored(inst.snapshot, cause)
		}
		p.n.log.Warn("instance died", "function", p.name, "instance", inst.id, "error", cause)
		// A server that just ends has said nothing of it.
		p.n.logs.tell(p.name, inst.id, inst.serving(), fmt.Sprintf("the instance ended: %v", cause))
	}
	inst.release()
	p.stopped(inst)
}

// reasonTime is for how long an instance whose server gave no answer is kept for
// the reason.
const reasonTime = 2 * time.Second

// awaitReason returns why the instance's server gave no answer, if that becomes
// known in a moment; else the symptom.
func (i *instance) awaitReason(symptom error) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(i.ctx), reasonTime, symptom)
	defer cancel()
	return i.vm.Wait(ctx)
}

func (p *pool) isOwnReason(err error) bool {
	return slices.ContainsFunc([]error{errExpired, errEvicted, errReplaced, errRemoved, errAlone, ErrDraining},
		func(own error) bool { return errors.Is(err, own) })
}

// stopped is the last of an instance.
func (p *pool) stopped(inst *instance) {
	inst.cancel(nil)
	p.mu.Lock()
	inst.to(api.InstanceStopped)
	delete(p.instances, inst.id)
	if len(p.instances) == 0 && p.empty != nil {
		close(p.empty)
		p.empty = nil
	}
	p.mu.Unlock()
	p.n.giveBack(inst.dep.fn.MemoryMiB, p, inst.leaving)
	p.poke()
}

// end makes an instance take no more requests and go when the last is answered;
// with grace its server is asked to stop first. The mutex is held.
func (p *pool) end(inst *instance, why error, grace bool) {
	if inst.state == api.InstanceDraining && inst.active == 0 && inst.visits > 0 && !waitsForVisits(why) {
		inst.cancel(why) // it only waited for them
	}
	if inst.state == api.InstanceDraining || inst.state == api.InstanceStopped {
		return
	}
	p.dropFree(inst)
	inst.grace, inst.err = grace, why
	inst.to(api.InstanceDraining)
	p.endIfUnused(inst)
}

// endIfUnused lets a draining instance go when nobody uses it. The mutex is held.
func (p *pool) endIfUnused(inst *instance) {
	if inst.active == 0 && (inst.visits == 0 || !waitsForVisits(inst.err)) {
		inst.cancel(inst.err)
	}
}

// endAll ends every instance that keep does not want kept. The mutex is held.
func (p *pool) endAll(why error, grace bool, keep func(*instance) bool) {
	for _, inst := range p.instances {
		if keep == nil || !keep(inst) {
			p.end(inst, why, grace)
		}
	}
}

// setFree offers the instance to the next request, dropFree no longer does. The
// mutex is held.
func (p *pool) setFree(inst *instance) {
	if !inst.free && !inst.full && !inst.probation {
		inst.free = true
		p.free = append(p.free, inst)
	}
}

func (p *pool) dropFree(inst *instance) {
	if inst.free {
		inst.free = false
		i := slices.Index(p.free, inst)
		p.free = slices.Delete(p.free, i, i+1)
	}
}

// takeFree returns the instance that the next request goes to: the last used that is below
// its target, so that those which are not needed can expire. The mutex is held.
func (p *pool) takeFree() *instance {
	if len(p.free) == 0 {
		return nil
	}
	last := p.free[len(p.free)-1]
	if last.active < targetOf(last.dep) {
		return last
	}
	active := make([]int, len(p.free))
	for i, inst := range p.free {
		active[i] = inst.active
	}
	return p.free[scale.Choose(active, targetOf(last.dep))]
}

func (p *pool) oldestIdle() *instance {
	idle, since := p.idle()
	if i := scale.Victim(since); i >= 0 {
		return idle[i]
	}
	return nil
}

// idle lists the instances without a request that nobody visits, those on
// probation too. The mutex is held.
func (p *pool) idle() (idle []*instance, since []time.Time) {
	for _, inst := range p.instances {
		if inst.state == api.InstanceIdle && inst.visits == 0 {
			idle, since = append(idle, inst), append(since, inst.idleSince)
		}
	}
	return idle, since
}

// stopTimers is for when the pool is closed. The mutex is held.
func (p *pool) stopTimers() {
	for _, t := range []*time.Timer{p.scaling.janitor, p.retryTimer, p.scaling.again} {
		if t != nil {
			t.Stop()
		}
	}
}
