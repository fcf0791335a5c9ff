package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer"
)

// ErrStoreUnavailable is wrapped by what failed for want of the object store.
var ErrStoreUnavailable = remote.ErrUnavailable

// storeWait is how long a guest waits for a page from the object store, by default.
const storeWait = 30 * time.Second

// beyondWait is how much later a guest is ended whose read does not end by itself when it should.
const beyondWait = 10 * time.Second

// arrival is a snapshot of the object store that instances start from while its memory is on its way:
// all else of it is here. One goroutine fetches the rest, and publishes it when it is whole.
type arrival struct {
	coming // its memory
	r      *transfer.Found
	snap   *snapshot.Arrival
	disk   *arrivingDisk // its root disk, if that is on its way, too
	head   int64         // bytes that were fetched before it could be started from
	total  int64         // bytes to fetch in all
	began  time.Duration // that this took
	stop   context.CancelCauseFunc
	have   chan struct{} // closed when its memory is here, or will not be
	over   chan struct{} // closed when the goroutine has ended
	err    error         // then: why it is not published; nil: it is
}

// origin is a snapshot to start from, in use, and the arrival that it is of, if it is not whole yet.
type origin struct {
	*snapshot.Snapshot
	from *arrival
}

// arrivals are those under way.
type arrivals struct {
	mu sync.Mutex
	of map[string]*arrival // guarded by mu: by id
}

func (a *arrivals) get(id string) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of[id]
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.of)
}

// all lists those of a function.
func (a *arrivals) all(function string) (list []*arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.of {
		if o.r.Entry.Function == function {
			list = append(list, o)
		}
	}
	return list
}

func (a *arrivals) put(o *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[string]*arrival{}
	}
	a.of[o.r.Entry.ID] = o
}

func (a *arrivals) drop(o *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.of, o.r.Entry.ID)
}

// whenDraining has f be called when the node drains, unless what it returns was called before.
func (n *Node) whenDraining(f func()) (never func()) {
	stop := make(chan struct{})
	go func() { // ends with the caller
		select {
		case <-n.drain:
			f()
		case <-stop:
		}
	}()
	return func() { close(stop) }
}

// arrive brings here what a start from the snapshot needs, and has the rest follow. nil without an error: all
// of it is here.
func (n *Node) arrive(ctx context.Context, r *transfer.Found) (_ *arrival, err error) {
	ctx, span := tracing.Start(ctx, "fetch snapshot", tracing.Function.String(r.Entry.Function), tracing.Snapshot.String(r.Entry.ID))
	defer func() { tracing.End(span, err) }()
	fail := func(err error) (*arrival, error) {
		return nil, fmt.Errorf("fetching snapshot %s: %w", r.Entry.ID, cause.Because(ctx, err))
	}
	began := time.Now()
	unlock, err := n.receiving.lock(ctx, r.Entry.ID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if snap, err := n.snaps.Take(ctx, r.Entry.ID); err == nil {
		snap.Release()
		return nil, nil
	}
	if a := n.arrivals.get(r.Entry.ID); a != nil {
		return a, a.usable()
	}
	disk, err := n.bringDisk(ctx, r)
	if err != nil {
		return fail(err)
	}
	a, err := n.beginArrival(ctx, r)
	if err != nil {
		disk.begin(nil)
		return fail(err)
	}
	a.disk = disk
	disk.begin(a.have) // guests need more of their memory than of their disk
	a.began = time.Since(began)
	filling, stop := context.WithCancelCause(n.ctx)
	a.stop = stop
	n.arrivals.put(a)
	if !n.spawn(func() { a.run(filling) }) {
		n.arrivals.drop(a)
		a.snap.Abort()
		a.leave()
		a.err = ErrDraining
		close(a.over)
		return fail(ErrDraining)
	}
	n.log.Info("starting from a snapshot of the object store while the rest of it is fetched", "function", r.Entry.Function, "snapshot", r.Entry.ID,
		"fetched", a.head, "of", a.total, "took", a.began.String())
	return a, nil
}

func (n *Node) beginArrival(ctx context.Context, r *transfer.Found) (*arrival, error) {
	stage, err := n.snaps.Receive(r.Manifest)
	if err != nil {
		return nil, err
	}
	defer stage.Abort()
	files, err := r.Stage(stage)
	if err != nil {
		return nil, err
	}
	a := &arrival{r: r, have: make(chan struct{}), over: make(chan struct{}),
		coming: coming{n: n, users: 1, what: []any{"function", r.Entry.Function, "snapshot", r.Entry.ID}}}
	for _, f := range files {
		c, _ := r.Stored.File(f.Name)
		a.total += r.Stored.Stored(c)
		if f.Name == snapshot.PartMemory {
			a.file = f.File
			continue
		}
		a.head += r.Stored.Stored(c)
	}
	defer func() {
		for _, f := range files {
			if f.File != a.file {
				err = errors.Join(err, f.File.Close())
			}
		}
	}()
	if a.file == nil {
		return nil, fmt.Errorf("%w: it has no memory", remote.ErrFormat)
	}
	err = n.deps.Remote.Fetch(ctx, r.Stored, transfer.Targets(files, snapshot.PartMemory), nil)
	if err == nil {
		a.blocks, err = n.deps.Remote.Arrive(r.Stored, snapshot.PartMemory, a.file, n.cfg.StoreWait)
	}
	if err == nil {
		a.snap, err = stage.Arrive(ctx, r.Manifest)
	}
	if err != nil {
		return nil, errors.Join(err, a.file.Close())
	}
	return a, nil
}

// run fetches the rest, and publishes the snapshot.
func (a *arrival) run(ctx context.Context) {
	defer close(a.over)
	n, began := a.n, time.Now()
	defer n.whenDraining(func() { a.stop(ErrDraining) })()
	err := a.fill(ctx)
	close(a.have)
	if err == nil && a.disk != nil {
		err = a.disk.await(ctx, a.r)
	}
	var snap api.Snapshot
	if err == nil {
		snap, err = a.snap.Complete(ctx)
	}
	if err != nil {
		a.fail(err)
		a.snap.Abort()
	}
	a.leave()
	n.arrivals.drop(a)
	if a.err = err; err != nil {
		if ctx.Err() == nil {
			n.log.Warn("a snapshot of the object store has not come whole", "function", a.r.Entry.Function, "snapshot", a.r.Entry.ID, "error", err)
		}
		return
	}
	n.received(a.r, snap, a.began+time.Since(began))
	if d := n.deployed(a.r.Entry.Function); d != nil {
		n.shells.wantNewest(n.ctx, d)
	}
}

// usable says why nothing should start from it, if so.
func (a *arrival) usable() error {
	if err := a.isStuck(); err != nil {
		return fmt.Errorf("snapshot %s has not come whole yet: %w", a.r.Entry.ID, err)
	}
	return nil
}

// use returns the snapshot to start from.
func (a *arrival) use() (*origin, error) {
	if err := a.usable(); err != nil {
		return nil, err
	}
	snap, err := a.snap.Use()
	if err != nil {
		return nil, err
	}
	return &origin{snap, a}, nil
}

// wait returns when the snapshot is published, or why it is not, or not for now. progress, which may be nil,
// is told of bytes of content.
func (a *arrival) wait(ctx context.Context, progress func(done, total int64)) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-a.over:
			return a.err
		case <-ctx.Done():
			return fmt.Errorf("waiting for snapshot %s to be here whole: %w", a.r.Entry.ID, context.Cause(ctx))
		case <-tick.C:
		}
		if err := a.usable(); err != nil {
			return err
		}
		if at := a.progress(); progress != nil {
			progress(at.Done, at.Total)
		}
	}
}

// progress says how far it is, in bytes of content.
func (a *arrival) progress() *api.Arriving {
	at := a.blocks.Progress()
	out := &api.Arriving{Done: at.Done, Total: at.Total}
	if a.disk != nil {
		at = a.disk.blocks.Progress()
		out.Done, out.Total = out.Done+at.Done, out.Total+at.Total
	}
	return out
}

// giveUp ends the arrival, unless it is published by then.
func (a *arrival) giveUp(why error) {
	a.stop(why)
	<-a.over
}

// dropArrivals gives up those of a function that keep does not want kept, and removes what is whole by then.
func (n *Node) dropArrivals(function string, why error, keep func(id string, m snapshot.Manifest) bool) {
	for _, a := range n.arrivals.all(function) {
		if id := a.r.Entry.ID; keep == nil || !keep(id, a.r.Manifest) {
			if a.giveUp(why); a.err == nil {
				n.removeSnapshots(function, []string{id})
			}
		}
	}
}

// arrivingFor returns an arrival that the deployment can start from, if there is one: the newest.
func (n *Node) arrivingFor(ctx context.Context, d *deployment) (newest *arrival, err error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range n.arrivals.all(d.fn.Name) {
		m := &a.r.Manifest
		if m.Match(n.want(d, info)) == nil && (newest == nil || m.Created.After(newest.r.Manifest.Created)) {
			newest = a
		}
	}
	return newest, nil
}

// startRemote returns what a start can go from of the object store; nil without an error, if the function
// wants none. One that could boot instead takes no longer than that is worth, and after a failure
// others do not even ask for a while. What the VMM maps must be here whole.
func (n *Node) startRemote(ctx context.Context, inst *instance) (*origin, error) {
	p, d := inst.pool, inst.dep
	if n.deps.Remote == nil || d.fn.Snapshot.Off {
		return nil, nil
	}
	mayBoot := inst.wanted != api.StartRestore // else its request says how long it waits
	if mayBoot {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, remoteWait, fmt.Errorf("the object store took longer than %v", remoteWait))
		defer cancel()
	}
	a, err := n.arrivingFor(ctx, d)
	if err != nil {
		return nil, err
	}
	if a == nil {
		p.mu.Lock()
		after := p.remoteAt
		p.mu.Unlock()
		if mayBoot && time.Now().Before(after) {
			return nil, nil
		}
		if a, err = n.fetchUsable(ctx, d); err != nil {
			p.mu.Lock()
			p.remoteAt = time.Now().Add(remoteRetry)
			p.mu.Unlock()
			return nil, cause.Because(ctx, err)
		}
	}
	if a != nil && memory.Mapped(n.policyFor(inst)) {
		if err := a.wait(ctx, nil); err != nil {
			return nil, err
		}
		a = nil
	}
	if a != nil {
		return a.use()
	}
	snap, err := n.usable(ctx, d)
	if snap == nil {
		return nil, err
	}
	return &origin{Snapshot: snap}, nil
}

// fetchUsable has a snapshot arrive that the deployment can start from, if the object store
// has one. The error says why there is none.
func (n *Node) fetchUsable(ctx context.Context, d *deployment) (*arrival, error) {
	r, err := n.findRemote(ctx, d)
	if err != nil {
		return nil, err
	}
	return n.arrive(ctx, r)
}

// source is where a restore gets its memory from.
func (o *origin) source() memory.Source {
	src := memorySource(o.Snapshot)
	if a := o.from; a != nil {
		src.ReadLimit = a.n.cfg.StoreWait + beyondWait
		src.Open = func(context.Context) (memory.Pages, error) {
			file, err := memory.OpenFile(o.MemoryPath(), o.MemorySize())
			if err != nil {
				return nil, err
			}
			if !a.join() { // all of it has come
				return file, nil
			}
			return &arrivingPages{file, a}, nil
		}
	}
	return src
}

// arrivingPages is memory that is on its way: a page that is not here is fetched when it is asked for. What is
// in the file was verified before it was written there.
type arrivingPages struct {
	memory.Pages
	a *arrival
}

var _ memory.Pages = (*arrivingPages)(nil)

const pageSize = 4096

// Data lists the pages of blocks that are stored.
func (p *arrivingPages) Data() ([]memory.Extent, error) {
	var out []memory.Extent
	for _, e := range p.a.blocks.Data() {
		first, end := e.Offset/pageSize, (e.Offset+e.Length+pageSize-1)/pageSize
		out = append(out, memory.Extent{First: uint32(first), Pages: uint32(end - first)})
	}
	return out, nil
}

func (p *arrivingPages) ReadNow(b []byte, first uint32) (bool, error) {
	if !p.a.blocks.Here(int64(first)*pageSize, int64(len(b))) {
		return false, nil
	}
	return p.Pages.ReadNow(b, first)
}

func (p *arrivingPages) Read(ctx context.Context, b []byte, first uint32) error {
	if err := p.a.bring(ctx, int64(first)*pageSize, int64(len(b))); err != nil {
		return err
	}
	return p.Pages.Read(ctx, b, first)
}

func (p *arrivingPages) Close() error {
	defer p.a.leave()
	return p.Pages.Close()
}

// Remote is what the session's statistics say of it.
func (p *arrivingPages) Remote() *api.RemoteMemory {
	at := p.a.blocks.Progress()
	return &api.RemoteMemory{Began: p.a.began, Fetched: p.a.head + at.Fetched, Total: p.a.total, Waits: at.Waits, Waited: at.Waited}
}
