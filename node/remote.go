package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
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
	// remoteDisk is the root disk's name among a snapshot's files in the store.
	remoteDisk = "disk"
	traceDir   = "trace/"
)

// traceFiles are those of a snapshot's trace directory that travel, what a start uses
// first before the rest.
var traceFiles = []string{
	workingset.SetFile, "trial/" + workingset.SetFile, workingset.TraceFile, "trial/" + workingset.TraceFile, workingset.LearnedFile,
}

// travelling is what the store keeps of a snapshot beside its files.
type travelling struct {
	Manifest json.RawMessage `json:"manifest"`
	Image    image.Image     `json:"image"` // whose root disk it has
}

// importer is an image store that takes root disks which were made elsewhere.
type importer interface {
	Import(ctx context.Context, img image.Image, fill func(disk *os.File) error) (image.Image, error)
}

var _ importer = (*image.Store)(nil)

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
	out := remote.Snapshot{Function: snap.Manifest.Function, ID: id, Fit: snap.Manifest.Fit()}
	manifest, err := snap.Manifest.Encode()
	if err != nil {
		return api.PushedSnapshot{}, err
	}
	if out.Meta, err = json.Marshal(travelling{manifest, img}); err != nil {
		return api.PushedSnapshot{}, err
	}
	var mark pushMark
	for _, name := range traceFiles {
		path := filepath.Join(snap.TraceDir(), name)
		if _, err := os.Lstat(path); err == nil {
			out.Files = append(out.Files, remote.File{Name: traceDir + name, Path: path})
			mark.WorkingSet = mark.WorkingSet || name == workingset.SetFile
		}
	}
	out.Files = append(out.Files,
		remote.File{Name: snapshot.PartState, Path: snap.StatePath()},
		remote.File{Name: snapshot.PartMemory, Path: snap.MemoryPath()},
		remote.File{Name: remoteDisk, Path: img.Disk})
	began := time.Now()
	done, err := n.deps.Remote.Push(ctx, out, progress)
	if err != nil {
		return api.PushedSnapshot{}, cause.Because(ctx, err)
	}
	mark.Manifest = done.Entry.Sum
	if err := mark.write(snap.Dir); err != nil {
		n.log.Warn("noting that a snapshot was pushed", "snapshot", id, "error", err)
	}
	took := time.Since(began)
	n.log.Info("snapshot pushed", "function", out.Function, "snapshot", id, "content", done.Content, "new", done.New, "written", done.Written, "took", took.String())
	return api.PushedSnapshot{ID: id, Function: out.Function, Content: done.Content, New: done.New, Written: done.Written, Took: api.Duration(took)}, nil
}

// receivable is a snapshot in the object store whose manifests were read.
type receivable struct {
	entry    remote.Entry
	stored   *remote.Manifest
	manifest snapshot.Manifest
	image    image.Image
}

func (n *Node) lookAt(ctx context.Context, e remote.Entry) (*receivable, error) {
	r := &receivable{entry: e}
	var err error
	if r.stored, err = n.deps.Remote.Load(ctx, e); err != nil {
		return nil, err
	}
	var t travelling
	d := json.NewDecoder(bytes.NewReader(r.stored.Meta))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("snapshot %s in the object store: %w: %w", e.ID, remote.ErrFormat, err)
	}
	if r.manifest, err = snapshot.Decode(t.Manifest); err != nil {
		return nil, fmt.Errorf("snapshot %s in the object store: %w", e.ID, err)
	}
	r.image = t.Image
	if m := &r.manifest; m.ID != e.ID || m.Function != e.Function || m.ImageDigest != t.Image.Digest || m.DiskDigest != t.Image.DiskDigest {
		return nil, fmt.Errorf("snapshot %s of %s in the object store: %w: its manifest is of %s of %s", e.ID, e.Function, remote.ErrFormat, m.ID, m.Function)
	}
	return r, nil
}

// findRemote returns the newest snapshot in the object store that the deployment could start
// from here; nil with reasons, if there is none.
func (n *Node) findRemote(ctx context.Context, d *deployment) (*receivable, error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	want := n.want(d, info)
	fit, err := n.deps.Remote.Fit(ctx, want.Fit())
	if err != nil {
		return nil, err
	}
	all, err := n.deps.Remote.List(ctx, want.Function)
	if err != nil {
		return nil, err
	}
	var reasons []error
	for _, e := range all {
		// Of those that do not fit the newest one's reason will do.
		if e.Fit != fit && len(reasons) > 0 {
			continue
		}
		r, err := n.lookAt(ctx, e)
		if err == nil {
			err = r.manifest.Match(want)
		}
		if err == nil {
			return r, nil
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		return nil, errors.New("the object store has none")
	}
	return nil, fmt.Errorf("in the object store: %w", errors.Join(reasons...))
}

// receive brings all of a snapshot here, with its root disk if that is not here yet.
func (n *Node) receive(ctx context.Context, r *receivable, progress func(done, total int64)) (api.Snapshot, error) {
	fail := func(err error) (api.Snapshot, error) {
		return api.Snapshot{}, fmt.Errorf("pulling snapshot %s: %w", r.entry.ID, cause.Because(ctx, err))
	}
	if a := n.arrivals.get(r.entry.ID); a != nil {
		if err := a.wait(ctx, progress); err != nil {
			return fail(err)
		}
	}
	unlock, err := n.receiving.lock(ctx, r.entry.ID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if snap, err := n.snaps.Take(ctx, r.entry.ID); err == nil {
		defer snap.Release()
		return n.described(r.entry.Function, r.entry.ID)
	}
	if err := n.receiveDisk(ctx, r); err != nil {
		return fail(err)
	}
	began := time.Now()
	stage, err := n.snaps.Receive(r.manifest)
	if err != nil {
		return fail(err)
	}
	defer stage.Abort()
	if err := n.receiveFiles(ctx, r, stage, progress); err != nil {
		return fail(err)
	}
	snap, err := stage.Adopt(ctx, r.manifest)
	if err != nil {
		return fail(err)
	}
	n.received(r, snap, time.Since(began))
	return snap, nil
}

// received notes where a snapshot came from that is here whole, and tells of it.
func (n *Node) received(r *receivable, snap api.Snapshot, took time.Duration) {
	if dir, err := n.snaps.Dir(snap.ID); err == nil {
		_, ws := r.stored.File(traceDir + workingset.SetFile)
		if err := (pushMark{r.entry.Sum, ws}).write(dir); err != nil {
			n.log.Warn("noting where a snapshot came from", "snapshot", snap.ID, "error", err)
		}
	}
	n.events.tell(api.Event{Kind: api.EventSnapshot, Function: r.entry.Function, Snapshot: &snap, Reason: "pulled from the object store"})
	n.log.Info("snapshot pulled", "function", r.entry.Function, "snapshot", snap.ID, "bytes", snap.DiskBytes, "took", took.String())
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

func (n *Node) receiveDisk(ctx context.Context, r *receivable) error {
	img, err := n.images.Get(r.image.Digest)
	if err == nil && img.DiskDigest != r.image.DiskDigest {
		err = fmt.Errorf("its root disk has digest %s, the one of image %s here %s", r.image.DiskDigest, img.Digest, img.DiskDigest)
	}
	if !errors.Is(err, image.ErrNotFound) {
		return err
	}
	store, ok := n.images.(importer)
	if !ok {
		return err
	}
	_, err = store.Import(ctx, r.image, func(disk *os.File) error {
		if c, ok := r.stored.File(remoteDisk); !ok || c.Size != r.image.DiskBytes {
			return fmt.Errorf("%w: it has no root disk of %d bytes", remote.ErrFormat, r.image.DiskBytes)
		}
		return n.deps.Remote.Fetch(ctx, r.stored, []remote.Target{{Name: remoteDisk, To: disk}}, nil)
	})
	return err
}

func (n *Node) receiveFiles(ctx context.Context, r *receivable, stage *snapshot.Staging, progress func(done, total int64)) (err error) {
	files, err := n.openFiles(r, stage)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.file.Close())
		}
	}()
	return n.deps.Remote.Fetch(ctx, r.stored, targets(files, ""), progress)
}

// stagedFile is one of a snapshot that is being received.
type stagedFile struct {
	name string // in the store
	file *os.File
}

// targets are all files but one.
func targets(files []stagedFile, but string) (list []remote.Target) {
	for _, f := range files {
		if f.name != but {
			list = append(list, remote.Target{Name: f.name, To: f.file})
		}
	}
	return list
}

// openFiles makes the snapshot's files, of holes, as they are to be when all has come.
func (n *Node) openFiles(r *receivable, stage *snapshot.Staging) (files []stagedFile, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.file.Close()
			}
			files = nil
		}
	}()
	paths := map[string]string{snapshot.PartState: stage.State(), snapshot.PartMemory: stage.Memory()}
	for _, name := range traceFiles {
		paths[traceDir+name] = filepath.Join(stage.Trace(), name)
	}
	for _, c := range r.stored.Files {
		path, ok := paths[c.Name]
		if !ok {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return files, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, stagedFile{c.Name, f})
		if p, isPart := r.manifest.Parts[c.Name]; isPart && p.Size != c.Size {
			return files, fmt.Errorf("%w: %s has %d bytes, its manifest says %d", remote.ErrFormat, c.Name, c.Size, p.Size)
		}
		if err := f.Truncate(c.Size); err != nil {
			return files, err
		}
	}
	return files, nil
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
	id := r.entry.ID
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
		r, err := n.lookAt(ctx, e)
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
		r, err := n.lookAt(ctx, e)
		if errors.Is(err, remote.ErrNotThere) {
			continue // removed just now
		}
		if errors.Is(err, remote.ErrUnavailable) || errors.Is(err, remote.ErrNoKey) || ctx.Err() != nil {
			return nil, err
		}
		s := api.RemoteSnapshot{ID: e.ID, Function: e.Function, Pushed: e.Modified}
		if err == nil {
			m := &r.manifest
			s.Created, s.Reason, s.MemoryMiB = m.Created, m.Reason, m.MemoryMiB
			s.VMM = strings.TrimSpace(m.VMM.Name + " " + m.VMM.Version + " " + m.VMM.Accel)
			for _, c := range r.stored.Files {
				s.Stored += r.stored.Stored(c)
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
			at := a.mem.Progress()
			s.Arriving = &api.Arriving{Done: at.Done, Total: at.Total}
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

// pushMark is in a snapshot's directory once the object store has it.
type pushMark struct {
	Manifest   string `json:"manifest"`    // digest of the one in the store
	WorkingSet bool   `json:"working_set"` // it has one
}

const pushMarkName = "pushed.json"

func (m pushMark) write(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteUnsynced(filepath.Join(dir, pushMarkName), b, 0o600)
}

// toPush says whether a snapshot is to be pushed: it was not yet, or has a working set since.
func toPush(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, pushMarkName))
	var m pushMark
	if err != nil || json.Unmarshal(b, &m) != nil {
		return !errors.Is(err, fs.ErrPermission)
	}
	if m.WorkingSet {
		return false
	}
	_, err = os.Lstat(filepath.Join(dir, traceDir, workingset.SetFile))
	return err == nil
}
