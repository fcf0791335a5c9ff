package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/lazydisk"
	"github.com/skep-dev/skep/transfer"
)

// Disks shows root disks that are arriving as files, which a VMM opens.
type Disks interface {
	// Show shows one under a name; see lazydisk.Server.
	Show(name string, d lazydisk.Disk, failed func(error)) (path string, end func(), err error)
	Close() error
}

var _ Disks = (*lazydisk.Server)(nil)

// receiver is an image store that takes root disks which are on their way.
type receiver interface {
	Receive(img image.Image) (*image.Incoming, error)
}

// resolver is an image store that can tell what a reference means without having it.
type resolver interface {
	Resolve(ctx context.Context, ref string) (digest string, err error)
}

var (
	_ receiver = (*image.Store)(nil)
	_ resolver = (*image.Store)(nil)
)

// arrivingDisk is an image whose root disk is on its way: instances start with it meanwhile. One goroutine
// fetches the rest, and puts it into the store when it is whole.
type arrivingDisk struct {
	coming
	image image.Image
	in    *image.Incoming
	stop  context.CancelCauseFunc
	start chan (<-chan struct{}) // what is to be over before the rest of it is fetched
	once  sync.Once              // of that
	over  chan struct{}          // closed when the goroutine has ended
	err   error                  // then: why it is not in the store; nil: it is
}

// disks are those that are arriving.
type disks struct {
	opening sync.Once
	server  Disks // nil: this host has none

	mu sync.Mutex
	of map[string]*arrivingDisk // guarded by mu: by the image's digest
}

func (d *disks) get(digest string) *arrivingDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[digest]
}

func (d *disks) put(a *arrivingDisk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[string]*arrivingDisk{}
	}
	d.of[a.image.Digest] = a
}

func (d *disks) drop(a *arrivingDisk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.of, a.image.Digest)
}

// disksDir is where disks that are arriving are mounted.
func (n *Node) disksDir() string { return n.cfg.path("disks") }

// diskServer returns what shows disks that are arriving; nil: they come whole first.
func (n *Node) diskServer() Disks {
	n.disks.opening.Do(func() {
		if n.deps.OpenDisks == nil {
			return
		}
		server, err := n.deps.OpenDisks(n.disksDir())
		if err != nil {
			n.log.Warn("root disks of the object store come whole before a start", "reason", err)
			return
		}
		n.disks.server = server
	})
	return n.disks.server
}

// closeDisks comes when no instance is left.
func (n *Node) closeDisks() error {
	n.disks.opening.Do(func() {}) // none from now on
	if n.disks.server == nil {
		return nil
	}
	return n.disks.server.Close()
}

// rootDisk returns an image whose root disk is here, or else is arriving, which is returned then, too.
func (n *Node) rootDisk(digest string) (image.Image, *arrivingDisk, error) {
	img, err := n.images.Get(digest)
	if !errors.Is(err, image.ErrNotFound) {
		return img, nil, err
	}
	a := n.disks.get(digest)
	if a == nil {
		img, again := n.images.Get(digest) // it may have come whole just now
		if again == nil {
			return img, nil, nil
		}
		return image.Image{}, nil, err
	}
	if err := a.usable(); err != nil {
		return image.Image{}, nil, err
	}
	return a.image, a, nil
}

// bootable is rootDisk for what boots, which the registry can give, too.
func (n *Node) bootable(ctx context.Context, d *deployment) error {
	_, _, err := n.rootDisk(d.image.Digest)
	pinned := image.Pinned(d.fn.Image, d.image.Digest)
	if pinned == "" || !errors.Is(err, image.ErrNotFound) && !errors.Is(err, errNotWhole) {
		return nil // what is wrong with it shows when it is used
	}
	n.log.Info("fetching an image again", "function", d.fn.Name, "image", pinned, "reason", err)
	img, ferr := n.images.Fetch(ctx, pinned, func(string, int64, int64) {})
	if ferr == nil && img.DiskDigest != d.image.DiskDigest {
		ferr = fmt.Errorf("the root disk of image %s, made anew, has digest %s: it was %s", img.Digest, img.DiskDigest, d.image.DiskDigest)
	}
	if ferr != nil {
		return fmt.Errorf("its root disk: %w, and %w", err, ferr)
	}
	return nil
}

// disk is the path of the instance's root disk.
func (n *Node) disk(inst *instance) (string, error) {
	inst.late = nil
	img, a, err := n.rootDisk(inst.dep.image.Digest)
	if err == nil && a != nil && !a.join() {
		img, a, err = n.rootDisk(inst.dep.image.Digest) // it has just come, or will not
	}
	if err != nil || a == nil {
		return img.Disk, err
	}
	path, end, err := n.disks.server.Show(inst.id, a, func(err error) {
		inst.attempt.fail(fmt.Errorf("%w: %w", errDiskLost, err))
	})
	if err != nil {
		a.leave()
		return "", err
	}
	inst.onRelease(func() { end(); a.leave() })
	inst.late = a
	return path, nil
}

// errDiskLost ends an instance, or a try to start it, whose root disk was on its way.
var errDiskLost = errors.New("its root disk cannot be read any more")

// attempt is what ends when something of the host fails under an instance: a start of it, after which it may
// start in another way, or else the instance.
type attempt struct {
	mu  sync.Mutex
	end context.CancelCauseFunc // guarded by mu
}

func (a *attempt) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.end != nil {
		a.end(err)
	}
}

func (a *attempt) ends(end context.CancelCauseFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end = end
}

// try runs a start, which fails with its instance's root disk.
func (i *instance) try(ctx context.Context, start func(context.Context) error) error {
	trying, end := context.WithCancelCause(ctx)
	defer end(nil)
	i.attempt.ends(end)
	err := start(trying)
	i.attempt.ends(i.cancel)
	if err == nil && ctx.Err() == nil {
		err = trying.Err()
	}
	if err != nil {
		return cause.Because(trying, err)
	}
	return nil
}

// bringDisk has the image of a snapshot here, or begins to have it, which is returned then: the caller says
// when the rest of it may come.
func (n *Node) bringDisk(ctx context.Context, r *transfer.Found) (*arrivingDisk, error) {
	store, ok := n.images.(receiver)
	if !ok || n.diskServer() == nil {
		return nil, r.Disk(ctx, n.deps.Remote, n.images)
	}
	unlock, err := n.receiving.lock(ctx, r.Image.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if a := n.disks.get(r.Image.Digest); a != nil {
		return a, a.fits(r)
	}
	if here, err := r.DiskHere(n.images); here || err != nil {
		return nil, err
	}
	in, err := store.Receive(r.Image)
	if err != nil {
		return nil, err
	}
	a := &arrivingDisk{in: in, image: r.Image, start: make(chan (<-chan struct{}), 1), over: make(chan struct{}),
		coming: coming{n: n, users: 1, file: in.Disk, what: []any{"image", r.Image.Digest}}}
	a.blocks, err = r.ArriveDisk(n.deps.Remote, in.Disk, n.cfg.StoreWait)
	filling, stop := context.WithCancelCause(n.ctx)
	a.stop = stop
	if err == nil {
		n.disks.put(a) // before it may be dropped
		if !n.spawn(func() { a.run(filling) }) {
			n.disks.drop(a)
			err = ErrDraining
		}
	}
	if err != nil {
		stop(err)
		in.Abort()
		a.leave()
		return nil, err
	}
	return a, nil
}

func (a *arrivingDisk) fits(r *transfer.Found) error {
	if a.image.DiskDigest != r.Image.DiskDigest {
		return fmt.Errorf("its root disk has digest %s, the one of image %s that is arriving %s", r.Image.DiskDigest, a.image.Digest, a.image.DiskDigest)
	}
	return a.usable()
}

// begin has the rest of it be fetched after something else is over; nil: now. Who says so first is right. A nil disk
// is none that is arriving.
func (a *arrivingDisk) begin(after <-chan struct{}) {
	if a != nil {
		a.once.Do(func() { a.start <- after })
	}
}

// await returns when the image of a snapshot is here, in whatever way it came, or why it is not.
func (a *arrivingDisk) await(ctx context.Context, r *transfer.Found) error {
	select {
	case <-a.over:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	here, err := r.DiskHere(a.n.images)
	if !here && err == nil {
		err = a.err
	}
	return err
}

// run fetches the rest, and puts the image into the store.
func (a *arrivingDisk) run(ctx context.Context) {
	defer close(a.over)
	n := a.n
	defer n.whenDraining(func() { a.stop(ErrDraining) })()
	err := a.whole(ctx)
	if err == nil {
		_, err = a.in.Complete(ctx)
	}
	if err != nil {
		a.fail(err)
		a.in.Abort() // who has it open keeps what is here
	}
	n.disks.drop(a)
	a.leave()
	if a.err = cause.Because(ctx, err); err != nil {
		if ctx.Err() == nil {
			n.log.Warn("a root disk of the object store has not come whole", "image", a.image.Digest, "error", err)
		}
		return
	}
	n.log.Info("root disk pulled", "image", a.image.Digest, "bytes", a.image.DiskBytes)
}

func (a *arrivingDisk) whole(ctx context.Context) error {
	// A VMM reads its beginning when it starts, whatever the guest does.
	if err := a.bring(ctx, 0, min(pageSize, a.image.DiskBytes)); err != nil && !errors.Is(err, remote.ErrUnavailable) {
		return err
	}
	var after <-chan struct{}
	select {
	case after = <-a.start:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if after != nil {
		select {
		case <-after:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return a.fill(ctx)
}

// errNotWhole is of a root disk that is arriving and stuck: for now, or, where what the store has is of no use,
// for good, when it is about to be given up.
var errNotWhole = errors.New("has not come whole yet")

// usable says why nothing should start with it, if so.
func (a *arrivingDisk) usable() error {
	if err := a.isStuck(); err != nil {
		return fmt.Errorf("the root disk of image %s %w: %w", a.image.Digest, errNotWhole, err)
	}
	return nil
}

var _ lazydisk.Disk = (*arrivingDisk)(nil)

// remote is what a record says of it.
func (a *arrivingDisk) remote() *api.RemoteDisk {
	at := a.blocks.Progress()
	return &api.RemoteDisk{Fetched: at.Fetched, Total: at.Stored, Waits: at.Waits, Waited: at.Waited}
}

// Size, Here, Bring and ReadAt are its disk's.
func (a *arrivingDisk) Size() int64                             { return a.image.DiskBytes }
func (a *arrivingDisk) Here(off, length int64) bool             { return a.blocks.Here(off, length) }
func (a *arrivingDisk) ReadAt(b []byte, off int64) (int, error) { return a.file.ReadAt(b, off) }
func (a *arrivingDisk) Bring(ctx context.Context, off, length int64) error {
	return a.bring(ctx, off, length)
}

// lateImage begins to have what a function's reference means now, where that is not here and the object store has a
// snapshot to start from with it. nil: the image is to be fetched as any other; what is in the way shows then.
func (n *Node) lateImage(ctx context.Context, cur *deployment, fn api.Function) *arrivingDisk {
	store, ok := n.images.(resolver)
	if !ok || n.deps.Remote == nil || fn.Snapshot.Off || image.Pinned(fn.Image, noDigest) == "" || n.diskServer() == nil {
		return nil
	}
	finding, cancel := context.WithTimeoutCause(ctx, remoteWait, fmt.Errorf("the object store took longer than %v", remoteWait))
	defer cancel()
	digest, err := store.Resolve(finding, fn.Image)
	if err != nil || digest == "" {
		return nil
	}
	if _, err := n.images.Get(digest); !errors.Is(err, image.ErrNotFound) {
		return nil
	}
	r, err := n.findWithImage(finding, cur, fn, digest)
	if err == nil && r != nil {
		var a *arrivingDisk
		if a, err = n.bringDisk(finding, r); a != nil && err == nil {
			n.log.Info("a root disk comes with a snapshot of the object store", "function", fn.Name, "image", digest, "snapshot", r.Entry.ID, "bytes", r.Image.DiskBytes)
			return a
		}
	}
	if err != nil {
		n.log.Info("making a root disk rather than having the object store's", "function", fn.Name, "image", digest, "reason", cause.Because(finding, err))
	}
	return nil
}

const noDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// maxLate is how many of a function's newest snapshots are looked at for one that has an image.
const maxLate = 8

// findWithImage returns the newest snapshot in the object store of an image that a function could start from here,
// were its root disk here; nil: there is none.
func (n *Node) findWithImage(ctx context.Context, cur *deployment, fn api.Function, digest string) (*transfer.Found, error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	all, err := n.deps.Remote.List(ctx, fn.Name)
	if err != nil {
		return nil, err
	}
	for _, e := range all[:min(len(all), maxLate)] {
		r, err := transfer.Look(ctx, n.deps.Remote, e)
		if errors.Is(err, remote.ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		}
		if err != nil || r.Image.Digest != digest {
			continue
		}
		d, err := n.revise(cur, fn, r.Image)
		if err != nil {
			return nil, err
		}
		if r.Manifest.Match(n.want(d, info)) == nil {
			return r, nil
		}
	}
	return nil, nil
}

// withoutStore has an image be made from what its registry has rather than come from the store: false, if it has
// come already.
func (n *Node) withoutStore(digest string, why error) bool {
	a := n.disks.get(digest)
	if a == nil {
		return false
	}
	a.stop(why)
	<-a.over
	return a.err != nil
}

// removeStaleDisks takes away what a daemon that died has left mounted.
func (n *Node) removeStaleDisks() error {
	dir := n.disksDir()
	if err := lazydisk.Unmount(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
