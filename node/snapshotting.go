package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/snapshot"
)

// Reasons for which snapshots are made, in their manifests.
const (
	reasonReady = "ready"
	reasonAsked = "asked for"
)

var errNoRoom = errors.New("the node has no room for another instance")

// snapshotRetry is how long after a failure no snapshot is tried by itself.
const snapshotRetry = time.Minute

// capture turns a ready instance without requests into a published snapshot.
// The machine does not survive it; the caller releases what is left.
func (n *Node) capture(ctx context.Context, inst *instance, stage *snapshot.Staging, reason string) (api.Snapshot, error) {
	defer stage.Abort()
	fail := func(err error) (api.Snapshot, error) {
		return api.Snapshot{}, fmt.Errorf("taking a snapshot of %s: %w", inst.pool.name, err)
	}
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return fail(err)
	}
	if err := inst.vm.Snapshot(ctx, stage.State(), stage.Memory()); err != nil {
		return fail(err)
	}
	d := inst.dep
	snap, err := stage.Publish(ctx, snapshot.Manifest{
		Reason: reason, VMM: info, CPU: n.cpu, HostKernel: snapshot.HostKernel(),
		GuestKernel: n.kernel.Digest, Initramfs: n.kernel.InitramfsDigest, Agent: n.kernel.Agent,
		ImageDigest: d.image.Digest, DiskDigest: d.image.DiskDigest, Spec: d.spec,
		VCPUs: d.fn.VCPUs, MemoryMiB: d.fn.MemoryMiB,
	})
	if err != nil {
		return api.Snapshot{}, err
	}
	n.events.tell(api.Event{Kind: api.EventSnapshot, Function: d.fn.Name, Snapshot: &snap, Reason: reason})
	n.log.Info("snapshot published", "function", d.fn.Name, "snapshot", snap.ID, "reason", reason, "bytes", snap.DiskBytes)
	return snap, nil
}

// trial is an instance that is started outside its pool: for a snapshot, or to
// see whether it works. It must be ended.
//
// Its place in the budget is reserved by the caller of try, which gives it back
// when it fails; later, end does.
type trial struct {
	*instance
	unlink func() bool // from the caller's context
	over   bool        // ended, or adopted by the pool
}

func (n *Node) try(ctx context.Context, p *pool, d *deployment, kind api.StartKind) (*trial, error) {
	t := &trial{instance: p.newInstance(d, nil)}
	t.wanted = kind
	// It ends with the caller's context as well as with the node's.
	t.unlink = context.AfterFunc(ctx, func() { t.cancel(context.Cause(ctx)) })
	if err := n.start(t.ctx, t.instance); err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// end ends the instance. It is idempotent.
func (t *trial) end() {
	if t.over {
		return
	}
	t.over = true
	t.unlink()
	t.cancel(nil)
	t.release()
	t.tellGone(context.Cause(t.ctx))
	t.pool.n.giveBack(t.dep.fn.MemoryMiB, nil, false)
}

// adopt puts the instance into its pool, idle, rather than end it.
func (t *trial) adopt() {
	p, inst := t.pool, t.instance
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil || !inst.dep.alike(p.current.Load()) || !t.unlink() || !p.n.spawn(func() { p.live(inst) }) {
		return
	}
	t.over = true
	p.instances[inst.id] = inst
	p.n.budget.adopt(p)
	inst.to(api.InstanceIdle)
	inst.idleSince, inst.readySince = time.Now(), time.Now()
	p.setFree(inst)
	p.armJanitor()
	p.pump()
}

// makeSnapshot boots an instance, whose place is reserved, for the sake of its
// snapshot.
func (n *Node) makeSnapshot(ctx context.Context, p *pool, d *deployment, reason string, tell func(api.DeployEvent)) (api.Snapshot, error) {
	end := begin(tell, api.StageBooting, "")
	t, err := n.try(ctx, p, d, api.StartBoot)
	if err != nil {
		return api.Snapshot{}, err
	}
	defer t.end()
	if err := n.check(t.ctx, t.instance, true); err != nil {
		return api.Snapshot{}, err
	}
	end()
	end = begin(tell, api.StageSnapshotting, "")
	stage, err := n.snaps.Stage(d.fn.Name)
	if err != nil {
		return api.Snapshot{}, err
	}
	snap, err := n.capture(t.ctx, t.instance, stage, reason)
	if err != nil {
		return api.Snapshot{}, err
	}
	end()
	return snap, nil
}

// snapshotIfMissing makes a snapshot in the background when an instance had to
// be booted for want of one and the function's rule says that it should have
// one since it was ready. The pool's mutex is held.
func (p *pool) snapshotIfMissing(inst *instance) {
	if !inst.noSnapshot {
		return
	}
	if !p.snapshotting && inst.dep.alike(p.published) {
		p.published = nil // it was there once, and is not usable any more
	}
	rule := inst.dep.fn.Snapshot
	if rule.Off || rule.AfterInvocations > 0 || p.snapshotting || time.Now().Before(p.snapshotAt) {
		return
	}
	p.snapshotting = true
	d := inst.dep
	if !p.n.spawn(func() { p.snapshotInBackground(d) }) {
		p.snapshotting = false
	}
}

func (p *pool) snapshotInBackground(d *deployment) {
	ctx, cancel := context.WithCancelCause(p.n.ctx)
	defer cancel(nil)
	p.mu.Lock()
	p.stopSnapshot = cancel
	p.mu.Unlock()
	p.snapshotEnded(d, p.snapshotNow(ctx, d))
}

func (p *pool) snapshotNow(ctx context.Context, d *deployment) error {
	unlock, err := p.n.names.lock(ctx, p.name)
	if err != nil {
		return err
	}
	defer unlock()
	if !d.alike(p.current.Load()) {
		return errReplaced
	}
	// Requests have a better right to what room there is.
	if !p.n.budget.take(d.fn.MemoryMiB, nil) {
		return errNoRoom
	}
	if _, err = p.n.makeSnapshot(ctx, p, d, reasonReady, nil); err == nil {
		p.tryIfRoom(ctx, d)
	}
	return err
}

// tryIfRoom tries a snapshot that was made without a deployment, where the node has
// room for that, so that its first start finds prefetched what the trial touched. What is
// wrong with it the next start will see, and boot instead.
func (p *pool) tryIfRoom(ctx context.Context, d *deployment) {
	if !p.n.budget.take(d.fn.MemoryMiB, nil) {
		return
	}
	if _, err := p.n.tryRestored(ctx, p, d); err != nil && ctx.Err() == nil && d.alike(p.current.Load()) {
		p.n.log.Warn("trying a new snapshot", "function", p.name, "error", err)
	}
}

// overrule ends the making of a snapshot in the background, since the function
// is about to be deployed anew or removed.
func (p *pool) overrule(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopSnapshot != nil {
		p.stopSnapshot(why)
	}
}

// snapshotEnded notes how making a snapshot went.
func (p *pool) snapshotEnded(d *deployment, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshotting, p.stopSnapshot = false, nil
	if err == nil {
		p.published = d
		p.n.pushSoon()
		p.n.spawn(func() { p.n.shells.wantNewest(p.n.ctx, d) })
		return
	}
	p.snapshotAt = time.Now().Add(snapshotRetry)
	if !p.isOwnReason(err) {
		p.n.log.Warn("snapshot failed", "function", p.name, "error", err)
	}
}

// snapshotDue says whether a booted instance has answered as many invocations
// as its function wants before the snapshot, and reserves the right to make it. One
// in which somebody ran or put something makes none: it would be in every clone.
// The mutex is held.
func (p *pool) snapshotDue(inst *instance) bool {
	rule := inst.dep.fn.Snapshot
	if rule.Off || rule.AfterInvocations == 0 || inst.requests < int64(rule.AfterInvocations) || !inst.noSnapshot || inst.visited {
		return false
	}
	if p.snapshotting || inst.dep.alike(p.published) || !inst.dep.alike(p.current.Load()) || time.Now().Before(p.snapshotAt) {
		return false
	}
	p.snapshotting = true
	return true
}

// snapshotServed makes the snapshot for which snapshotDue ended an instance.
func (p *pool) snapshotServed(inst *instance) {
	ctx, cancel := context.WithTimeout(p.n.ctx, inst.dep.fn.ReadyTimeout.D())
	defer cancel()
	stage, err := p.n.snaps.Stage(p.name)
	if err == nil {
		reason := fmt.Sprintf("after %d invocations", inst.requests)
		_, err = p.n.capture(ctx, inst, stage, reason)
	}
	p.snapshotEnded(inst.dep, err)
	if err == nil {
		p.n.spawn(func() { p.tryIfRoom(p.n.ctx, inst.dep) })
	}
}

// CreateSnapshot makes a snapshot of a function now, from an instance that is
// booted for it, and tries it as a deployment does. When it fails there is none.
func (n *Node) CreateSnapshot(ctx context.Context, function string, progress func(api.DeployEvent)) (api.Snapshot, error) {
	ctx, stop := n.until(ctx)
	defer stop()
	unlock, err := n.names.lock(ctx, function)
	if err != nil {
		return api.Snapshot{}, err
	}
	defer unlock()
	progress = n.tellDeploy(function, progress)
	p := n.pool(function)
	if p == nil {
		return api.Snapshot{}, fmt.Errorf("%q: %w", function, ErrNoFunction)
	}
	d := p.current.Load()
	if d == nil {
		return api.Snapshot{}, fmt.Errorf("%q: %w", function, ErrNoFunction)
	}
	if err := n.reserve(ctx, d.fn.MemoryMiB); err != nil {
		return api.Snapshot{}, err
	}
	snap, err := n.makeSnapshot(ctx, p, d, reasonAsked, progress)
	if err != nil {
		return api.Snapshot{}, err
	}
	end := begin(progress, api.StageChecking, d.fn.Rehearsal.String())
	if err = n.reserve(ctx, d.fn.MemoryMiB); err == nil {
		_, err = n.tryRestored(ctx, p, d)
	}
	if err != nil {
		return api.Snapshot{}, errors.Join(err, n.unpublish(p.name, snap.ID))
	}
	end()
	p.snapshotEnded(d, nil)
	tell(progress, api.DeployEvent{Stage: api.StageDone, Snapshot: &snap})
	return snap, nil
}

// Snapshots lists the snapshots of a function, or all for "", newest first, and
// says of each whether a start here could use it.
func (n *Node) Snapshots(ctx context.Context, function string) ([]api.Snapshot, error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	list, err := n.snaps.List(function, func(name string) (snapshot.Want, bool) {
		p := n.pool(name)
		if p == nil {
			return snapshot.Want{}, false
		}
		d := p.current.Load()
		if d == nil {
			return snapshot.Want{}, false
		}
		return n.want(d, info), true
	})
	if err != nil {
		return nil, err
	}
	n.markKept(ctx, list, info)
	return list, nil
}

// InspectSnapshot returns a snapshot's manifest, SnapshotDir its directory.
func (n *Node) InspectSnapshot(id string) (snapshot.Manifest, error) { return n.snaps.Manifest(id) }
func (n *Node) SnapshotDir(id string) (string, error)                { return n.snaps.Dir(id) }

// SnapshotMemory says what is known of a snapshot's memory, with pages page by
// page, and which policy restores of its function go by.
func (n *Node) SnapshotMemory(id string, pages bool) (api.SnapshotMemory, error) {
	m, err := n.snaps.Manifest(id)
	if err != nil {
		return api.SnapshotMemory{}, err
	}
	dir, err := n.snaps.Dir(id)
	if err != nil {
		return api.SnapshotMemory{}, err
	}
	snap := snapshot.Snapshot{Manifest: m, Dir: dir}
	out := memory.Inspect(memorySource(&snap), pages)
	f, _ := n.Function(m.Function)
	out.Function, out.Policy = m.Function, orDefault(f.MemoryPolicy, n.cfg.DefaultPolicy)
	return out, nil
}

// VerifySnapshot checks every byte of a snapshot.
func (n *Node) VerifySnapshot(ctx context.Context, id string) error { return n.snaps.Verify(ctx, id) }

// RemoveSnapshot takes a snapshot away; instances that run from it go on.
func (n *Node) RemoveSnapshot(id string) error {
	if a := n.arrivals.get(id); a != nil {
		if a.giveUp(errRemoved); a.err != nil {
			return nil
		}
	}
	m, err := n.snaps.Manifest(id)
	if errors.Is(err, snapshot.ErrNotFound) {
		return err
	}
	if p := n.pool(m.Function); err == nil && p != nil {
		p.mu.Lock()
		p.published = nil
		p.mu.Unlock()
	}
	if err := n.snaps.Remove(id); err != nil {
		return err
	}
	n.tellSnapshotGone(m.Function, id)
	return nil
}
