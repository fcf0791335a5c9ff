package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// ErrNoRevision is wrapped when a function has no such revision, or no longer.
var ErrNoRevision = errors.New("no such revision is kept")

// Set changes of a function what a JSON merge patch names and keeps the rest.
// What is in the guest's memory (image, arguments, environment, port, memory and
// the like) is tried out and snapshotted as by Deploy; all else is in force at
// once. Naming the image fetches it, as a deploy does.
func (n *Node) Set(ctx context.Context, name string, patch []byte, progress func(api.DeployEvent)) (api.Function, error) {
	return n.changing(ctx, name, progress, func(ctx context.Context, progress func(api.DeployEvent)) (api.Function, error) {
		return n.set(ctx, name, patch, progress)
	})
}

func (n *Node) set(ctx context.Context, name string, patch []byte, progress func(api.DeployEvent)) (api.Function, error) {
	p, unlock, err := n.lockDeployed(ctx, name)
	if err != nil {
		return api.Function{}, err
	}
	defer unlock()
	cur := p.current.Load()
	fn, names, err := cur.fn.Change(patch)
	if err != nil {
		return api.Function{}, err
	}
	if err := n.validate(fn); err != nil {
		return api.Function{}, err
	}
	img, again := cur.image, slices.Contains(names, "image")
	if again {
		if img, err = n.fetch(ctx, fn.Image, progress); err != nil {
			return api.Function{}, fmt.Errorf("changing %s: %w", name, err)
		}
	}
	d, err := n.revise(cur, fn, img)
	if err != nil {
		return api.Function{}, err
	}
	change := "set " + strings.Join(names, ", ")
	if again || !d.sameGuest(cur) {
		return n.putInService(ctx, p, d, change, progress)
	}
	return n.inForce(ctx, p, d, change, progress)
}

// Rollback puts an earlier revision into force, as a new one; 0 is the one
// before. It serves at once where a snapshot of it is kept, and is tried out as
// by Deploy where none is.
func (n *Node) Rollback(ctx context.Context, name string, revision int, progress func(api.DeployEvent)) (api.Function, error) {
	return n.changing(ctx, name, progress, func(ctx context.Context, progress func(api.DeployEvent)) (api.Function, error) {
		return n.rollback(ctx, name, revision, progress)
	})
}

func (n *Node) rollback(ctx context.Context, name string, revision int, progress func(api.DeployEvent)) (api.Function, error) {
	p, unlock, err := n.lockDeployed(ctx, name)
	if err != nil {
		return api.Function{}, err
	}
	defer unlock()
	cur := p.current.Load()
	old, err := n.revision(ctx, cur, revision)
	if err != nil {
		return api.Function{}, err
	}
	if err := n.validate(old.fn); err != nil { // the node's own limits may be others now
		return api.Function{}, err
	}
	img, _, err := n.rootDisk(old.image.Digest)
	if err != nil {
		if img, err = n.fetch(ctx, old.fn.Image, progress); err != nil {
			return api.Function{}, fmt.Errorf("rolling %s back: %w", name, err)
		}
	}
	if img.Digest != old.image.Digest {
		return api.Function{}, fmt.Errorf("rolling %s back: the image of revision %d is gone, and %s is another now", name, old.fn.Revision, old.fn.Image)
	}
	d, err := n.revise(cur, old.fn, img)
	if err != nil {
		return api.Function{}, err
	}
	change := fmt.Sprintf("rollback to %d", old.fn.Revision)
	if d.sameGuest(cur) {
		return n.inForce(ctx, p, d, change, progress)
	}
	snap, _ := n.usable(ctx, d)
	if snap == nil {
		return n.putInService(ctx, p, d, change, progress)
	}
	defer snap.Release() // its files stay until it is in force
	return n.inForce(ctx, p, d, change, progress)
}

// lockDeployed locks the name of a function that is deployed.
func (n *Node) lockDeployed(ctx context.Context, name string) (*pool, func(), error) {
	if p := n.pool(name); p != nil {
		p.overrule(errReplaced)
	}
	unlock, err := n.names.lock(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	p := n.pool(name)
	if p == nil || p.current.Load() == nil {
		unlock()
		return nil, nil, fmt.Errorf("%q: %w", name, ErrNoFunction)
	}
	return p, unlock, nil
}

// revise makes the deployment that comes after cur, nil for none.
func (n *Node) revise(cur *deployment, fn api.Function, img image.Image) (*deployment, error) {
	fn.ImageDigest, fn.Created, fn.Revision = img.Digest, time.Now().UTC().Round(time.Millisecond), 1
	if cur != nil {
		fn.Revision = cur.fn.Revision + 1
	}
	return newDeployment(fn, img)
}

// putInService tries the deployment out and lets it serve.
func (n *Node) putInService(ctx context.Context, p *pool, d *deployment, change string, progress func(api.DeployEvent)) (api.Function, error) {
	snap, err := n.tryOut(ctx, p, d, change, progress)
	if err != nil {
		return api.Function{}, fmt.Errorf("deploying %s: %w", d.fn.Name, err)
	}
	done := api.DeployEvent{Stage: api.StageDone, Function: &d.fn}
	if snap.ID != "" {
		done.Snapshot = &snap
	}
	tell(progress, done)
	return d.fn, nil
}

// inForce lets a deployment serve whose guest needs no trial: it is that of the
// one before, or of a snapshot that is kept.
func (n *Node) inForce(ctx context.Context, p *pool, d *deployment, change string, progress func(api.DeployEvent)) (api.Function, error) {
	d.servesLike(p.current.Load())
	if err := n.commit(ctx, p, d, "", change); err != nil {
		return api.Function{}, err
	}
	tell(progress, api.DeployEvent{Stage: api.StageDone, Function: &d.fn})
	return d.fn, nil
}

// revision finds a kept revision; 0 is the newest before the current one.
func (n *Node) revision(ctx context.Context, cur *deployment, number int) (*deployment, error) {
	kept, err := n.db.revisions(ctx, cur.fn.Name)
	if err != nil {
		return nil, err
	}
	for _, r := range kept {
		if r.dep.fn.Revision == number || number == 0 && r.dep.fn.Revision < cur.fn.Revision {
			return r.dep, nil
		}
	}
	if number == 0 {
		return nil, fmt.Errorf("function %q has no revision before %d: %w", cur.fn.Name, cur.fn.Revision, ErrNoRevision)
	}
	return nil, fmt.Errorf("function %q, revision %d: %w", cur.fn.Name, number, ErrNoRevision)
}

// Revisions lists what is kept of a function's history, newest first.
func (n *Node) Revisions(ctx context.Context, name string) ([]api.Revision, error) {
	cur, ok := n.Function(name)
	if !ok {
		return nil, fmt.Errorf("%q: %w", name, ErrNoFunction)
	}
	kept, err := n.db.revisions(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []api.Revision
	for _, r := range kept {
		fn := r.dep.fn
		fit, err := n.fitting(r.dep)
		if err != nil {
			return nil, err
		}
		out = append(out, api.Revision{
			Number: fn.Revision, Created: fn.Created, Change: r.change, Image: fn.Image, Digest: fn.ImageDigest,
			Current: fn.Revision == cur.Revision, Snapshots: len(fit), Function: fn,
		})
	}
	return out, nil
}

// fitting lists the function's snapshots that the deployment could start from,
// newest first.
func (n *Node) fitting(d *deployment) ([]string, error) {
	ids, err := n.snaps.IDs(d.fn.Name)
	return slices.DeleteFunc(ids, func(id string) bool {
		m, err := n.snaps.Manifest(id)
		return err != nil || !d.fits(m)
	}), err
}

// guestKind is what a deployment says of its guests that must be the same for the
// memory of one to do for another.
type guestKind struct {
	spec, image, disk string
	memoryMiB, vcpus  int
}

func (d *deployment) guest() guestKind {
	return guestKind{d.spec, d.image.Digest, d.image.DiskDigest, d.fn.MemoryMiB, d.fn.VCPUs}
}

// fits says whether a snapshot is of the deployment's guest.
func (d *deployment) fits(m snapshot.Manifest) bool {
	return d.guest() == guestKind{m.Spec, m.ImageDigest, m.DiskDigest, m.MemoryMiB, m.VCPUs}
}

// sameGuest says whether the memory of one's guests would do for the other.
func (d *deployment) sameGuest(o *deployment) bool { return d.guest() == o.guest() }

// former is the deployment that before found; nil if there is none.
type former struct{ dep *deployment }

// formerOf is before of the deployment in force, looked up once.
func (n *Node) formerOf(ctx context.Context, p *pool) *deployment {
	if f := p.before.Load(); f != nil {
		return f.dep
	}
	d := p.current.Load()
	if d == nil {
		return nil
	}
	prev, err := n.before(ctx, d)
	if err != nil {
		return nil // asked again the next time
	}
	p.before.CompareAndSwap(nil, &former{prev})
	return prev
}

// markKept says of snapshots that cannot be used which of them are kept for a
// rollback.
func (n *Node) markKept(ctx context.Context, list []api.Snapshot, info vmm.Info) {
	for i := range list {
		s := &list[i]
		p := n.pool(s.Function)
		if s.Usable || p == nil {
			continue
		}
		cur, prev := p.current.Load(), n.formerOf(ctx, p)
		m, err := n.snaps.Manifest(s.ID)
		if err != nil || cur == nil || prev == nil {
			continue
		}
		// Another problem than that it is not of the one in force stays one.
		why := m.Match(n.want(cur, info))
		if why != nil && why.Error() == s.Problem && m.Match(n.want(prev, info)) == nil {
			s.Rollback, s.Problem = true, "kept for a rollback: it is of the settings before those in force"
		}
	}
}

// before is the newest deployment with another guest than d's that is kept beside
// it: the one that a rollback is most likely to want. It is nil when there is none.
func (n *Node) before(ctx context.Context, d *deployment) (*deployment, error) {
	kept, err := n.db.revisions(ctx, d.fn.Name)
	if err != nil {
		return nil, err
	}
	for _, r := range kept {
		if r.dep.fn.Revision > d.fn.Revision-n.cfg.KeepRevisions && !r.dep.sameGuest(d) {
			return r.dep, nil
		}
	}
	return nil, nil
}
