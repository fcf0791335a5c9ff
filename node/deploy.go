package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/snapshot"
)

// tell calls the progress function if there is one.
func tell(progress func(api.DeployEvent), e api.DeployEvent) {
	if progress != nil {
		progress(e)
	}
}

// begin tells that a stage begins; what it returns tells that it is over.
func begin(progress func(api.DeployEvent), stage api.DeployStage, detail string) (end func()) {
	began := time.Now()
	tell(progress, api.DeployEvent{Stage: stage, Detail: detail})
	return func() {
		tell(progress, api.DeployEvent{Stage: stage, Detail: detail, Took: time.Since(began)})
	}
}

// until derives a context that also ends when the node drains, and makes Close
// wait for stop.
func (n *Node) until(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	if !n.spawn(func() {
		select {
		case <-n.drain:
			cancel(ErrDraining)
			<-over
		case <-over:
		}
	}) {
		cancel(ErrDraining)
	}
	return ctx, func() { cancel(nil); close(over) }
}

// Deploy makes a function serve: it fetches the image, boots an instance to see
// that it becomes ready, and by the default rule takes its snapshot. Only when
// all that has worked is the function stored, replacing in one step an earlier
// one of its name, which serves until then. When it fails, or the daemon dies
// meanwhile, nothing has changed. Progress is never called twice at once.
func (n *Node) Deploy(ctx context.Context, fn api.Function, progress func(api.DeployEvent)) (api.Function, error) {
	return n.changing(ctx, fn.Name, progress, func(ctx context.Context, progress func(api.DeployEvent)) (api.Function, error) {
		return n.deploy(ctx, fn, progress)
	})
}

// changing runs what changes a function, until the node drains, and tells when
// it has failed.
func (n *Node) changing(ctx context.Context, name string, progress func(api.DeployEvent),
	change func(context.Context, func(api.DeployEvent)) (api.Function, error)) (api.Function, error) {
	ctx, stop := n.until(ctx)
	defer stop()
	progress = serialised(n.tellDeploy(name, progress))
	n.deploying.RLock()
	defer n.deploying.RUnlock()
	out, err := change(ctx, progress)
	if err != nil {
		err = cause.Because(ctx, err)
		tell(progress, api.DeployEvent{Stage: api.StageFailed, Error: err.Error()})
		return api.Function{}, err
	}
	return out, nil
}

func serialised(progress func(api.DeployEvent)) func(api.DeployEvent) {
	var mu sync.Mutex
	return func(e api.DeployEvent) {
		mu.Lock()
		defer mu.Unlock()
		progress(e)
	}
}

func (n *Node) deploy(ctx context.Context, fn api.Function, progress func(api.DeployEvent)) (api.Function, error) {
	fn = fn.WithDefaults()
	if err := n.validate(fn); err != nil {
		return api.Function{}, err
	}
	if p := n.pool(fn.Name); p != nil {
		p.overrule(errReplaced)
	}
	unlock, err := n.names.lock(ctx, fn.Name)
	if err != nil {
		return api.Function{}, err
	}
	defer unlock()
	p, cur := n.pool(fn.Name), (*deployment)(nil)
	if p == nil {
		p = n.newPool(fn.Name)
	} else {
		cur = p.current.Load()
	}
	if late := n.lateImage(ctx, cur, fn); late != nil {
		out, err := n.deployLate(ctx, p, cur, fn, late, progress)
		if err == nil || ctx.Err() != nil || !n.withoutStore(late.image.Digest, err) {
			return out, err
		}
		n.log.Warn("deploying once more, without the object store's root disk", "function", fn.Name, "error", err)
	}
	img, err := n.fetch(ctx, fn.Image, progress)
	if err != nil {
		return api.Function{}, fmt.Errorf("deploying %s: %w", fn.Name, err)
	}
	d, err := n.revise(cur, fn, img)
	if err != nil {
		return api.Function{}, err
	}
	return n.putInService(ctx, p, d, "deploy", progress)
}

// deployLate deploys with a root disk that is arriving.
func (n *Node) deployLate(ctx context.Context, p *pool, cur *deployment, fn api.Function, late *arrivingDisk, progress func(api.DeployEvent)) (api.Function, error) {
	defer late.begin(nil) // unless something had a better mind of when
	d, err := n.revise(cur, fn, late.image)
	if err != nil {
		return api.Function{}, err
	}
	return n.putInService(ctx, p, d, "deploy", progress)
}

func (n *Node) validate(fn api.Function) error {
	if err := fn.Validate(); err != nil {
		return invalid(err)
	}
	if _, err := scale.Parse(fn.Scaling); err != nil {
		return invalid(fmt.Errorf("function %q: %w", fn.Name, err))
	}
	if fn.MemoryPolicy != "" {
		if _, err := n.deps.Policy(fn.MemoryPolicy); err != nil {
			return invalid(fmt.Errorf("function %q: memory_policy: %w", fn.Name, err))
		}
	}
	if err := n.budget.fits(fn.MemoryMiB); err != nil {
		return invalid(fmt.Errorf("function %q: %w", fn.Name, err))
	}
	return nil
}

// invalid marks an error as about what was asked for.
func invalid(err error) error { return &invalidError{err} }

type invalidError struct{ error }

func (e *invalidError) Unwrap() []error { return []error{ErrInvalid, e.error} }

// fetch gets the image's root disk, telling how far it is.
func (n *Node) fetch(ctx context.Context, ref string, progress func(api.DeployEvent)) (image.Image, error) {
	end := begin(progress, api.StagePulling, ref)
	img, err := n.images.Fetch(ctx, ref, func(stage string, done, total int64) {
		e := api.DeployEvent{Stage: api.StageBuilding, Detail: stage, Done: done, Total: total}
		if strings.HasPrefix(stage, "pull") {
			e.Stage = api.StagePulling
		}
		tell(progress, e)
	})
	if err != nil {
		return image.Image{}, err
	}
	end()
	return img, nil
}

// tryOut boots the deployment, has its snapshot taken if the rule says so, and
// puts it into service.
func (n *Node) tryOut(ctx context.Context, p *pool, d *deployment, change string, progress func(api.DeployEvent)) (api.Snapshot, error) {
	snap, took, err := n.tryPulled(ctx, p, d, progress)
	if err != nil {
		return api.Snapshot{}, err
	}
	if snap.ID != "" {
		return snap, n.commitWith(ctx, p, d, snap.ID, took, change)
	}
	if err := n.reserve(ctx, d.fn.MemoryMiB); err != nil {
		return api.Snapshot{}, err
	}
	end := begin(progress, api.StageBooting, "")
	t, err := n.try(ctx, p, d, api.StartBoot)
	if err != nil {
		return api.Snapshot{}, err
	}
	defer t.end()
	if err := n.check(t.ctx, t.instance, true); err != nil {
		return api.Snapshot{}, err
	}
	end()
	tell(progress, api.DeployEvent{Stage: api.StageReady, Took: sum(t.phases)})
	if rule := d.fn.Snapshot; !rule.Off && rule.AfterInvocations == 0 {
		if snap, took, err = n.publishTrial(ctx, t, progress); err != nil {
			return api.Snapshot{}, err
		}
	}
	if err := n.commitWith(ctx, p, d, snap.ID, took, change); err != nil || snap.ID != "" {
		return snap, err
	}
	// It works, so it may as well serve.
	fit, err := n.fitting(d)
	t.noSnapshot = err == nil && len(fit) == 0
	t.adopt()
	return snap, nil
}

// commitWith is commit with the deployment's own snapshot, "" for none, from which a start took so
// long; when it fails that goes.
func (n *Node) commitWith(ctx context.Context, p *pool, d *deployment, snap string, took time.Duration, change string) error {
	if err := n.commit(ctx, p, d, snap, change); err != nil {
		return errors.Join(err, n.unpublish(d.fn.Name, snap))
	}
	if snap != "" {
		p.mu.Lock()
		p.startTook(api.StartRestore, took)
		p.mu.Unlock()
		n.pushSoon()
	}
	return nil
}

// publishTrial ends the trial for its snapshot, and starts another from that, to
// see that it answers too. It returns what that start has taken. When it fails
// there is no snapshot.
func (n *Node) publishTrial(ctx context.Context, t *trial, progress func(api.DeployEvent)) (api.Snapshot, time.Duration, error) {
	end := begin(progress, api.StageSnapshotting, "")
	stage, err := n.snaps.Stage(t.dep.fn.Name)
	if err != nil {
		return api.Snapshot{}, 0, err
	}
	// Published before the function is, it must not outlive a crash between.
	if err := n.db.doom(ctx, stage.ID); err != nil {
		stage.Abort()
		return api.Snapshot{}, 0, err
	}
	snap, err := n.capture(t.ctx, t.instance, stage, reasonReady)
	if err != nil {
		return api.Snapshot{}, 0, errors.Join(err, n.db.spare(stage.ID))
	}
	end()
	t.end()
	end = begin(progress, api.StageChecking, t.dep.fn.Rehearsal.String())
	if err = n.reserve(ctx, t.dep.fn.MemoryMiB); err != nil {
		return api.Snapshot{}, 0, errors.Join(err, n.unpublish(t.dep.fn.Name, snap.ID))
	}
	took, err := n.tryRestored(ctx, t.pool, t.dep)
	if err != nil {
		return api.Snapshot{}, 0, errors.Join(err, n.unpublish(t.dep.fn.Name, snap.ID))
	}
	end()
	return snap, took, nil
}

// unpublish removes the snapshot of a deployment that failed, if it has one.
func (n *Node) unpublish(function, id string) error {
	if id == "" {
		return nil
	}
	if a := n.arrivals.get(id); a != nil {
		if a.giveUp(errRemoved); a.err != nil {
			return n.db.spare(id)
		}
	}
	err := n.snaps.Remove(id)
	if err == nil {
		n.tellSnapshotGone(function, id)
	}
	return errors.Join(err, n.db.spare(id))
}

// commit stores the deployment and lets it serve. Of the snapshots that were
// there, those stay which fit it or the one that it replaces.
func (n *Node) commit(ctx context.Context, p *pool, d *deployment, snap, change string) error {
	prev, err := n.before(ctx, d)
	if err != nil {
		return err
	}
	old, err := n.superseded(d, prev, snap)
	if err != nil {
		return err
	}
	if err := n.db.putFunction(ctx, d, putOptions{change: change, snapshot: snap, doomed: old, revisions: n.cfg.KeepRevisions}); err != nil {
		return err
	}
	n.mu.Lock()
	n.pools[d.fn.Name] = p
	draining := n.draining
	n.mu.Unlock()
	p.mu.Lock()
	was := p.current.Load()
	p.before.Store(&former{prev})
	p.current.Store(d)
	switch {
	case snap != "":
		p.published = d
	case !d.alike(p.published):
		p.published = nil
	}
	p.snapshotAt = time.Time{}
	p.forgive()
	if !d.alike(was) { // what was measured is of another
		p.service, p.startCost, p.startKind = 0, 0, ""
	}
	p.endAll(errReplaced, false, func(inst *instance) bool { return inst.dep.alike(d) })
	p.rearmJanitor()
	if draining {
		p.shut(ErrDraining)
	}
	n.tellFunction(d.fn, change)
	p.pump()
	p.mu.Unlock()
	n.shells.forget(d.fn.Name)
	n.spawn(func() { n.shells.wantNewest(n.ctx, d) })
	n.removeSnapshots(d.fn.Name, old)
	n.dropArrivals(d.fn.Name, errReplaced, func(id string, m snapshot.Manifest) bool {
		return id == snap || d.fits(m) || prev != nil && prev.fits(m)
	})
	n.log.Info("deployed", "function", d.fn.Name, "image", d.fn.Image, "digest", d.image.Digest, "revision", d.fn.Revision, "change", change, "snapshot", snap)
	return nil
}

// superseded lists the function's snapshots that are of no use once d is in
// force: those that fit neither it nor prev, to which it may be rolled back, and,
// if d comes with a new snapshot, those of d that were made by themselves before.
func (n *Node) superseded(d, prev *deployment, snap string) ([]string, error) {
	ids, err := n.snaps.IDs(d.fn.Name)
	if err != nil {
		return nil, err
	}
	var old []string
	for _, id := range ids {
		m, err := n.snaps.Manifest(id)
		keep := id == snap
		if err == nil && d.fits(m) {
			keep = keep || snap == "" || m.Reason == reasonAsked
		} else if err == nil && prev != nil {
			keep = keep || prev.fits(m)
		}
		if !keep {
			old = append(old, id)
		}
	}
	return old, nil
}

// removeSnapshots removes snapshots that are marked as doomed. What cannot be
// removed now is tried again by the next Open.
func (n *Node) removeSnapshots(function string, ids []string) {
	for _, id := range ids {
		err := n.snaps.Remove(id)
		if err == nil {
			n.tellSnapshotGone(function, id)
		}
		if err == nil || errors.Is(err, snapshot.ErrNotFound) {
			err = n.db.spare(id)
		}
		if err != nil {
			n.log.Warn("removing a snapshot", "snapshot", id, "error", err)
		}
	}
}

// Remove takes a function away: requests in flight are answered (for as long as
// the drain timeout), then its snapshots and logs go too.
func (n *Node) Remove(ctx context.Context, function string) error {
	ctx, stop := n.until(ctx)
	defer stop()
	if p := n.pool(function); p != nil {
		p.overrule(errRemoved)
	}
	unlock, err := n.names.lock(ctx, function)
	if err != nil {
		return err
	}
	defer unlock()
	p := n.pool(function)
	if p == nil {
		return fmt.Errorf("%q: %w", function, ErrNoFunction)
	}
	ids, err := n.snaps.IDs(function)
	if err != nil {
		return err
	}
	if err := n.db.deleteFunction(ctx, function, ids); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.pools, function)
	n.mu.Unlock()
	p.mu.Lock()
	p.current.Store(nil)
	p.shut(fmt.Errorf("%q: %w", function, ErrRemoved))
	p.endAll(errRemoved, true, nil)
	p.mu.Unlock()
	n.shells.forget(function)
	p.drained(n.cfg.DrainTimeout)
	n.removeSnapshots(function, ids)
	n.dropArrivals(function, errRemoved, nil)
	n.events.tell(api.Event{Kind: api.EventFunctionRemoved, Function: function})
	n.log.Info("removed", "function", function)
	return n.logs.remove(function)
}
