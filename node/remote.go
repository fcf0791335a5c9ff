package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer"
)

// ErrNoStore is wrapped when something of the object store is asked for and none is
// configured.
var ErrNoStore = errors.New("no object store is configured (store_bucket)")

const (
	// remoteWait bounds how long a start that could boot waits for a snapshot from the
	// object store.
	remoteWait = 20 * time.Second
	// remoteRetry is how long after the store had none for a function, or did not
	// answer, no start asks it again.
	remoteRetry = 30 * time.Second
)

// PushSnapshot stores a snapshot, with its root disk, in the object store. progress may be
// nil.
func (n *Node) PushSnapshot(ctx context.Context, id string, progress func(done, total int64)) (api.PushedSnapshot, error) {
	if n.deps.Remote == nil {
		return api.PushedSnapshot{}, ErrNoStore
	}
	ctx, stop := n.until(ctx)
	defer stop()
	snap, err := n.snaps.Take(ctx, id)
	if err != nil {
		return api.PushedSnapshot{}, err
	}
	defer snap.Release()
	img, err := n.images.Get(snap.Manifest.ImageDigest)
	if err != nil {
		return api.PushedSnapshot{}, fmt.Errorf("pushing snapshot %s: its root disk: %w", id, err)
	}
	began := time.Now()
	done, err := transfer.Push(ctx, n.deps.Remote, snap, img, n.log, progress)
	if err != nil {
		return api.PushedSnapshot{}, cause.Because(ctx, err)
	}
	return api.PushedSnapshot{ID: id, Function: done.Entry.Function, Content: done.Content, New: done.New, Written: done.Written, Took: api.Duration(time.Since(began))}, nil
}

// findRemote returns the newest snapshot in the object store that the deployment could start
// from here; nil with reasons, if there is none.
func (n *Node) findRemote(ctx context.Context, d *deployment) (*transfer.Found, error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	return transfer.Find(ctx, n.deps.Remote, n.want(d, info))
}

// receive brings all of a snapshot here, with its root disk if that is not here yet.
func (n *Node) receive(ctx context.Context, r *transfer.Found, progress func(done, total int64)) (api.Snapshot, error) {
	fail := func(err error) (api.Snapshot, error) {
		return api.Snapshot{}, fmt.Errorf("pulling snapshot %s: %w", r.Entry.ID, cause.Because(ctx, err))
	}
	if a := n.arrivals.get(r.Entry.ID); a != nil {
		if err := a.wait(ctx, progress); err != nil {
			return fail(err)
		}
	}
	unlock, err := n.receiving.lock(ctx, r.Entry.ID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if snap, err := n.snaps.Take(ctx, r.Entry.ID); err == nil {
		defer snap.Release()
		return n.described(r.Entry.Function, r.Entry.ID)
	}
	if err := r.Disk(ctx, n.deps.Remote, n.images); err != nil {
		return fail(err)
	}
	began := time.Now()
	snap, err := r.Pull(ctx, n.deps.Remote, n.snaps, progress)
	if err != nil {
		return fail(err)
	}
	n.received(r, snap, time.Since(began))
	return snap, nil
}

// received notes where a snapshot came from that is here whole, and tells of it.
func (n *Node) received(r *transfer.Found, snap api.Snapshot, took time.Duration) {
	if dir, err := n.snaps.Dir(snap.ID); err == nil {
		if err := r.Came(dir); err != nil {
			n.log.Warn("noting where a snapshot came from", "snapshot", snap.ID, "error", err)
		}
	}
	n.events.tell(api.Event{Kind: api.EventSnapshot, Function: r.Entry.Function, Snapshot: &snap, Reason: "pulled from the object store"})
}

// described is a snapshot that is here already, or arriving, as a list would have it.
func (n *Node) described(function, id string) (api.Snapshot, error) {
	if a := n.arrivals.get(id); a != nil {
		return a.snap.Describe(), nil
	}
	list, err := n.snaps.List(function, nil)
	if err != nil {
		return api.Snapshot{}, err
	}
	i := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.ID == id })
	if i < 0 {
		return api.Snapshot{}, fmt.Errorf("snapshot %s: %w", id, snapshot.ErrNotFound)
	}
	return list[i], nil
}

// tryPulled tries a deployment out with a snapshot of the object store, that somebody else has
// booted for. No snapshot, and no error: there is none that works here, so it must be booted.
func (n *Node) tryPulled(ctx context.Context, p *pool, d *deployment, progress func(api.DeployEvent)) (api.Snapshot, time.Duration, error) {
	if n.deps.Remote == nil || d.fn.Snapshot.Off {
		return api.Snapshot{}, 0, nil
	}
	id, took, err := n.tryReceived(ctx, p, d, progress)
	if err == nil {
		snap, err := n.described(d.fn.Name, id)
		return snap, took, err
	}
	if ctx.Err() != nil {
		return api.Snapshot{}, 0, err
	}
	n.log.Info("booting rather than from a snapshot of the object store", "function", d.fn.Name, "reason", err)
	return api.Snapshot{}, 0, n.unpublish(d.fn.Name, id)
}

// tryReceived returns the snapshot's id also with an error, if it may be here then.
func (n *Node) tryReceived(ctx context.Context, p *pool, d *deployment, progress func(api.DeployEvent)) (string, time.Duration, error) {
	finding, cancel := context.WithTimeoutCause(ctx, remoteWait, fmt.Errorf("the object store took longer than %v", remoteWait))
	defer cancel()
	r, err := n.findRemote(finding, d)
	if err != nil {
		return "", 0, cause.Because(finding, err)
	}
	id := r.Entry.ID
	if _, err := n.snaps.Manifest(id); err == nil || n.arrivals.get(id) != nil {
		return "", 0, fmt.Errorf("snapshot %s is here already", id)
	}
	// Published before the function is, it must not outlive a crash between.
	if err := n.db.doom(ctx, id); err != nil {
		return "", 0, err
	}
	end := begin(progress, api.StagePulling, "snapshot "+id)
	a, err := n.arrive(ctx, r)
	if err != nil {
		return "", 0, errors.Join(err, n.db.spare(id))
	}
	if a != nil && memory.Mapped(n.policyOf(d)) { // a deployment has more time for it than a start
		if err := a.wait(ctx, nil); err != nil {
			return id, 0, err
		}
	}
	end()
	end = begin(progress, api.StageChecking, d.fn.Rehearsal.String())
	if err := n.reserve(ctx, d.fn.MemoryMiB); err != nil {
		return id, 0, err
	}
	took, err := n.tryRestored(ctx, p, d)
	if err != nil {
		return id, 0, err
	}
	end()
	return id, took, nil
}

// PullSnapshot brings a snapshot here from the object store: that of the id, or, for "", the
// newest of the function that it could start from here. progress may be nil.
func (n *Node) PullSnapshot(ctx context.Context, function, id string, progress func(done, total int64)) (api.Snapshot, error) {
	if n.deps.Remote == nil {
		return api.Snapshot{}, ErrNoStore
	}
	ctx, stop := n.until(ctx)
	defer stop()
	if id != "" {
		e, err := n.deps.Remote.Find(ctx, function, id)
		if err != nil {
			return api.Snapshot{}, err
		}
		r, err := transfer.Look(ctx, n.deps.Remote, e)
		if err != nil {
			return api.Snapshot{}, err
		}
		return n.receive(ctx, r, progress)
	}
	p := n.pool(function)
	if p == nil || p.current.Load() == nil {
		return api.Snapshot{}, fmt.Errorf("%q: %w; name the snapshot to have one before its function is deployed", function, ErrNoFunction)
	}
	r, err := n.findRemote(ctx, p.current.Load())
	if err != nil {
		return api.Snapshot{}, fmt.Errorf("%w for function %s: %w", ErrNoSnapshot, function, err)
	}
	return n.receive(ctx, r, progress)
}

// RemoteSnapshots lists what is in the object store of a function, or of all for "", newest
// first, and says of each whether it is here and whether a start here could use it.
func (n *Node) RemoteSnapshots(ctx context.Context, function string) ([]api.RemoteSnapshot, error) {
	if n.deps.Remote == nil {
		return nil, ErrNoStore
	}
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	all, err := n.deps.Remote.List(ctx, function)
	if err != nil {
		return nil, err
	}
	out := make([]api.RemoteSnapshot, 0, len(all))
	for _, e := range all {
		r, err := transfer.Look(ctx, n.deps.Remote, e)
		if errors.Is(err, remote.ErrNotThere) {
			continue // removed just now
		}
		if errors.Is(err, remote.ErrUnavailable) || errors.Is(err, remote.ErrNoKey) || ctx.Err() != nil {
			return nil, err
		}
		s := api.RemoteSnapshot{ID: e.ID, Function: e.Function, Pushed: e.Modified}
		if err == nil {
			m := &r.Manifest
			s.Created, s.Reason, s.MemoryMiB = m.Created, m.Reason, m.MemoryMiB
			s.VMM = strings.TrimSpace(m.VMM.Name + " " + m.VMM.Version + " " + m.VMM.Accel)
			for _, c := range r.Stored.Files {
				s.Stored += r.Stored.Stored(c)
			}
			if d := n.deployed(e.Function); d != nil {
				err = m.Match(n.want(d, info))
			} else {
				err = fmt.Errorf("function %s is not deployed", e.Function)
			}
		}
		if s.Usable = err == nil; err != nil {
			s.Problem = err.Error()
		}
		_, missing := n.snaps.Manifest(e.ID)
		s.Here = missing == nil
		if a := n.arrivals.get(e.ID); a != nil && !s.Here {
			s.Arriving = a.progress()
		}
		out = append(out, s)
	}
	return out, nil
}

func (n *Node) deployed(function string) *deployment {
	if p := n.pool(function); p != nil {
		return p.current.Load()
	}
	return nil
}

// RemoveRemoteSnapshot takes a snapshot out of the object store.
func (n *Node) RemoveRemoteSnapshot(ctx context.Context, function, id string) error {
	if n.deps.Remote == nil {
		return ErrNoStore
	}
	return n.deps.Remote.Remove(ctx, function, id)
}

// CollectStore, VerifyStore and StoreUsage are those of the object store.
func (n *Node) CollectStore(ctx context.Context, o api.CollectRequest) (api.Collected, error) {
	if n.deps.Remote == nil {
		return api.Collected{}, ErrNoStore
	}
	c, err := n.deps.Remote.Collect(ctx, remote.CollectOptions{DryRun: o.DryRun, Grace: o.Grace.D(), Keep: o.Keep})
	out := api.Collected{Pushes: c.Pushes, Dead: c.Dead, Packs: c.Packs, Bytes: c.Bytes, Condemned: c.Condemned, Waiting: c.Waiting, Deleted: c.Deleted, Freed: c.Freed, Removed: []string{}}
	for _, e := range c.Removed {
		out.Removed = append(out.Removed, e.Function+"/"+e.ID)
	}
	return out, err
}

func (n *Node) VerifyStore(ctx context.Context, function string, quick bool) (api.StoreVerified, error) {
	if n.deps.Remote == nil {
		return api.StoreVerified{}, ErrNoStore
	}
	v, err := n.deps.Remote.Verify(ctx, function, quick, nil)
	out := api.StoreVerified{Snapshots: v.Snapshots, Chunks: v.Chunks, Bytes: v.Bytes, Problems: []api.StoreProblem{}}
	for _, p := range v.Problems {
		out.Problems = append(out.Problems, api.StoreProblem{Snapshot: p.Entry.Function + "/" + p.Entry.ID, Error: p.Err.Error()})
	}
	return out, err
}

// StoreStats counts what was had of the object store; nil: there is none.
func (n *Node) StoreStats() *api.StoreStats {
	if n.deps.Remote == nil {
		return nil
	}
	s := n.deps.Remote.Stats()
	return &api.StoreStats{Fetched: s.Fetched, Requests: s.Requests, Failed: s.Failed, Waits: s.Waits, Waited: s.Waited,
		CacheHits: s.Cache.Hits, CacheMisses: s.Cache.Misses, CacheBytes: s.Cache.Bytes, Arriving: n.arrivals.count()}
}

func (n *Node) StoreUsage(ctx context.Context, function string) (api.StoreUsage, error) {
	if n.deps.Remote == nil {
		return api.StoreUsage{}, ErrNoStore
	}
	u, err := n.deps.Remote.Usage(ctx, function)
	out := api.StoreUsage{Packs: u.Packs, PackBytes: u.PackBytes, Needed: u.Needed, Condemned: u.Condemned, Pushes: u.Pushes, Snapshots: []api.SnapshotUsage{}}
	for _, s := range u.Snapshots {
		out.Snapshots = append(out.Snapshots, api.SnapshotUsage{ID: s.Entry.ID, Function: s.Entry.Function, Length: s.Length, Content: s.Content, Stored: s.Stored, Own: s.Own})
	}
	return out, err
}
