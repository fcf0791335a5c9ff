package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/lazydisk"
	"github.com/skep-dev/skep/remote/remotetest"
)

// registry is an image store beside a registry that has one image.
type registry struct {
	*image.Store
	img     image.Image
	content []byte
	fetched atomic.Int64 // times that the disk was made
}

func (r *registry) Resolve(context.Context, string) (string, error) { return r.img.Digest, nil }

func (r *registry) Fetch(ctx context.Context, _ string, _ image.Progress) (image.Image, error) {
	return r.Import(ctx, r.img, func(disk *os.File) error {
		r.fetched.Add(1)
		_, err := disk.WriteAt(r.content, 0)
		return err
	})
}

// shown are disks as VMMs would have them open.
type shown struct {
	mu     sync.Mutex
	disks  map[string]lazydisk.Disk // guarded by mu, like all: by name
	failed map[string]func(error)
	all    int
	closed bool
}

func (s *shown) Show(name string, d lazydisk.Disk, failed func(error)) (string, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks[name], s.failed[name] = d, failed
	s.all++
	return "/shown/" + name, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.disks, name)
	}, nil
}

func (s *shown) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *shown) count() (now, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.disks), s.all
}

// late has one node push a snapshot, and another be about to start from it that has not its image. Of reads of packs
// those after the first two, of the state and of the disk's beginning, are judged by judge.
type late struct {
	n       *Node
	other   *world
	images  *registry
	shown   *shown
	id      string
	content []byte // of the root disk
	free    atomic.Int64
	judge   func() error
	log     *bytes.Buffer
}

func newLate(t *testing.T, maker, other *world, openDisks func(*shown) (Disks, error)) *late {
	t.Helper()
	l := &late{other: other, content: make([]byte, 3<<20), shown: &shown{disks: map[string]lazydisk.Disk{}, failed: map[string]func(error){}}, log: &bytes.Buffer{}}
	_, _ = rand.NewChaCha8([32]byte{5}).Read(l.content) // never fails
	sum := sha256.Sum256(l.content)
	img := image.Image{Digest: "sha256:" + strings.Repeat("ab", 32), DiskBytes: int64(len(l.content)), DiskDigest: "sha256:" + hex.EncodeToString(sum[:]),
		Config: image.Config{Entrypoint: []string{"/app"}}}
	b := &remotetest.Memory{}
	open := func(w *world, change func(*Deps, *registry)) (*Node, *registry) {
		r := &registry{img: img, content: l.content}
		deps := w.deps()
		store, err := remote.New(remote.Options{Bucket: b})
		if err != nil {
			t.Fatal(err)
		}
		deps.Remote = store
		deps.OpenImages = func(_ context.Context, dir string) (image.Fetcher, error) {
			r.Store, err = image.Open(dir, image.Options{})
			return r, err
		}
		change(&deps, r)
		n, err := Open(context.Background(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}, deps)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(n.Close(context.Background()), r.Close()); err != nil {
				t.Error(err)
			}
			w.check(t)
		})
		return n, r
	}
	a, made := open(maker, func(*Deps, *registry) {})
	deploy(t, a, hello(nil))
	if made.fetched.Load() != 1 {
		t.Errorf("its disk was made %d times where it was made", made.fetched.Load())
	}
	l.id = snapshotIDs(t, a)[0]
	if _, err := a.PushSnapshot(t.Context(), l.id, nil); err != nil {
		t.Fatal(err)
	}
	l.free.Store(2)
	b.Fail = func(op, key string) error {
		if op == "read" && strings.Contains(key, "/packs/") && l.free.Add(-1) < 0 {
			return l.judge()
		}
		return nil
	}
	l.n, l.images = open(other, func(d *Deps, _ *registry) {
		d.Log = slog.New(slog.NewTextHandler(l.log, nil))
		d.OpenDisks = func(string) (Disks, error) { return openDisks(l.shown) }
	})
	return l
}

func showing(s *shown) (Disks, error) { return s, nil }

// one returns the only disk that is shown.
func (l *late) one(t *testing.T) (lazydisk.Disk, func(error)) {
	t.Helper()
	l.shown.mu.Lock()
	defer l.shown.mu.Unlock()
	if len(l.shown.disks) != 1 {
		t.Fatalf("%d disks are shown", len(l.shown.disks))
	}
	for name, d := range l.shown.disks {
		return d, l.shown.failed[name]
	}
	return nil, nil
}

// here says whether the image is in the store, as it should be.
func (l *late) here(t *testing.T) bool {
	t.Helper()
	img, err := l.images.Get(l.images.img.Digest)
	if errors.Is(err, image.ErrNotFound) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(img.Disk)
	if err != nil || !bytes.Equal(b, l.content) {
		t.Errorf("its root disk is wrong: %d bytes, %v", len(b), err)
	}
	return true
}

// TestStartsBeforeDiskHasCome has a function be deployed and serve with a root disk of which nothing is here but what
// is asked for, and the image be published when all of it is.
func TestStartsBeforeDiskHasCome(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, showing)
		gate := make(chan struct{})
		l.judge = func() error { <-gate; return nil }
		deploy(t, l.n, hello(lazyHello))
		lease := acquire(t, l.n, AcquireOptions{})
		get(t, lease)
		if lease.Start() != api.StartRestore || other.boots != 0 || l.here(t) || l.images.fetched.Load() != 0 {
			t.Errorf("a %s, %d boots, the image is here: %v", lease.Start(), other.boots, l.here(t))
		}
		if s := inStore(t, l.n); len(s) != 1 || s[0].Here || s[0].Arriving == nil || s[0].Arriving.Done >= s[0].Arriving.Total {
			t.Errorf("in the store: %+v", s)
		}
		d, _ := l.one(t)
		if !d.Here(0, 4096) || d.Here(2<<20, 4096) || d.Size() != 3<<20 {
			t.Errorf("here: %v, %v, of %d bytes", d.Here(0, 4096), d.Here(2<<20, 4096), d.Size())
		}
		read := make(chan error)
		b := make([]byte, 8192)
		go func() {
			err := d.Bring(t.Context(), 2<<20, 8192)
			if err == nil {
				_, err = d.ReadAt(b, 2<<20)
			}
			read <- err
		}()
		synctest.Wait()
		close(gate)
		if err := <-read; err != nil || !bytes.Equal(b, l.content[2<<20:][:8192]) {
			t.Errorf("read late: %v", err)
		}
		synctest.Wait()
		if !l.here(t) || l.n.disks.get(l.images.img.Digest) != nil || l.images.fetched.Load() != 0 {
			t.Error("it has not come whole")
		}
		if s := inStore(t, l.n); len(s) != 1 || !s[0].Here || s[0].Arriving != nil {
			t.Errorf("in the store: %+v", s)
		}
		if _, err := d.ReadAt(b, 1<<20); err != nil || !bytes.Equal(b, l.content[1<<20:][:8192]) {
			t.Errorf("by who has it open since before: %v", err)
		}
		_, before := l.shown.count()
		lease.Release(api.Invocation{})
		alone := acquire(t, l.n, AcquireOptions{Start: api.StartRestore})
		alone.Release(api.Invocation{})
		if _, all := l.shown.count(); all != before {
			t.Error("what is whole was not started from as a file")
		}
		time.Sleep(time.Second) // records are written some at a time
		recs, err := l.n.Invocations(t.Context(), InvocationFilter{Function: "hello"})
		if err != nil || len(recs) != 2 || recs[0].Disk == nil || recs[1].Disk != nil {
			t.Fatalf("records: %+v, %v", recs, err)
		}
		if d := recs[0].Disk; d.Fetched != d.Total || d.Total < 3<<20 || d.Waits == 0 {
			t.Errorf("its record says of the root disk: %+v", d)
		}
	})
}

// TestStoreDiesWhileDiskArrives has a guest's block not come in time: it ends, with the reason, nothing is restored
// while the store is dead, what boots has its disk of the registry, and it all comes when the store is back.
func TestStoreDiesWhileDiskArrives(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, showing)
		var back atomic.Bool
		gate := make(chan struct{})
		l.judge = func() error {
			if <-gate; back.Load() {
				return nil
			}
			return remote.ErrUnavailable
		}
		deploy(t, l.n, hello(lazyHello))
		lease := acquire(t, l.n, AcquireOptions{})
		close(gate)
		began := time.Now()
		d, failed := l.one(t)
		err := d.Bring(t.Context(), 2<<20, 4096)
		if !errors.Is(err, ErrStoreUnavailable) || time.Since(began) < storeWait {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		failed(err)
		<-lease.Gone()
		if err := lease.Err(); !errors.Is(err, ErrStoreUnavailable) || !strings.Contains(err.Error(), "root disk") {
			t.Errorf("it ended since %v", err)
		}
		lease.Release(api.Invocation{})
		synctest.Wait()
		if now, _ := l.shown.count(); now != 0 {
			t.Errorf("%d disks are shown", now)
		}
		if _, err := l.n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartRestore}); !errors.Is(err, ErrStoreUnavailable) {
			t.Errorf("a restore: %v", err)
		}
		if l.images.fetched.Load() != 0 {
			t.Error("its disk was made before it was needed")
		}
		lease = acquire(t, l.n, AcquireOptions{})
		if lease.Start() != api.StartBoot || l.images.fetched.Load() != 1 || !l.here(t) {
			t.Errorf("a %s, its disk was made %d times", lease.Start(), l.images.fetched.Load())
		}
		lease.Release(api.Invocation{})
		back.Store(true)
		time.Sleep(3 * arrivalMost)
		synctest.Wait()
		if !l.here(t) || l.n.disks.get(l.images.img.Digest) != nil {
			t.Error("it is arriving still")
		}
		if left, _ := filepath.Glob(filepath.Join(other.dir, "images", ".*")); len(left) > 0 {
			t.Errorf("left in the store: %v", left)
		}
	})
}

// TestDiskIsSpoilt has the store's root disk be damaged, or another than the manifest says: it is never published,
// and the function goes on with the registry's.
func TestDiskIsSpoilt(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, showing)
		gate := make(chan struct{})
		l.judge = func() error { <-gate; return remote.ErrFormat }
		deploy(t, l.n, hello(lazyHello))
		lease := acquire(t, l.n, AcquireOptions{})
		close(gate)
		d, failed := l.one(t)
		err := d.Bring(t.Context(), 2<<20, 4096)
		if !errors.Is(err, remote.ErrFormat) {
			t.Errorf("a block: %v", err)
		}
		failed(err)
		<-lease.Gone()
		lease.Release(api.Invocation{})
		synctest.Wait()
		if l.here(t) || l.n.disks.get(l.images.img.Digest) != nil {
			t.Error("it is here, or arriving still")
		}
		lease = acquire(t, l.n, AcquireOptions{})
		if !l.here(t) { // it was asked for once more, and this booted before that was found damaged
			_, failed := l.one(t)
			failed(remote.ErrFormat)
			<-lease.Gone()
			lease.Release(api.Invocation{})
			synctest.Wait()
			lease = acquire(t, l.n, AcquireOptions{})
		}
		if lease.Start() != api.StartBoot || !l.here(t) {
			t.Errorf("a %s, the image is here: %v", lease.Start(), l.here(t))
		}
		lease.Release(api.Invocation{})
	})
}

// TestBootReadsSpoiltDisk has a boot read what is damaged in the store: it is booted once more, with the registry's
// disk, and its request knows nothing of it.
func TestBootReadsSpoiltDisk(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, showing)
		gate := make(chan struct{})
		l.judge = func() error { <-gate; return remote.ErrFormat }
		deploy(t, l.n, hello(lazyHello))
		var lease Lease
		got := make(chan error)
		go func() {
			var err error
			lease, err = l.n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartBoot})
			got <- err
		}()
		synctest.Wait()
		close(gate)
		d, failed := l.one(t)
		err := d.Bring(t.Context(), 2<<20, 4096)
		if !errors.Is(err, remote.ErrFormat) {
			t.Errorf("a block: %v", err)
		}
		failed(err)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		if lease.Start() != api.StartBoot || other.boots != 2 || l.images.fetched.Load() != 1 || !l.here(t) {
			t.Errorf("a %s, %d boots, its disk was made %d times", lease.Start(), other.boots, l.images.fetched.Load())
		}
		get(t, lease)
		lease.Release(api.Invocation{})
	})
}

// TestDiskFailsUnderStart has a start fail for its root disk, which then is not the end of its request.
func TestDiskFailsUnderStart(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, showing)
		l.judge = func() error { time.Sleep(time.Second); return remote.ErrUnavailable }
		deploy(t, l.n, hello(lazyHello))
		other.set(func() { other.restoreTime = time.Hour })
		got := make(chan Lease)
		go func() { got <- acquire(t, l.n, AcquireOptions{}) }()
		synctest.Wait()
		if now, _ := l.shown.count(); now == 0 {
			t.Skip("it did not begin to start from what is arriving")
		}
		_, failed := l.one(t)
		failed(remote.ErrUnavailable)
		lease := <-got
		if lease.Start() != api.StartBoot {
			t.Errorf("a %s", lease.Start())
		}
		lease.Release(api.Invocation{})
	})
}

// TestNoDisksAreShown has a host without FUSE: the root disk comes whole first, and that is said once.
func TestNoDisksAreShown(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := newLate(t, maker, other, func(*shown) (Disks, error) { return nil, os.ErrNotExist })
		l.judge = func() error { return nil }
		if _, err := l.n.PullSnapshot(t.Context(), "hello", l.id, nil); err != nil {
			t.Error(err)
		}
		if !l.here(t) || l.images.fetched.Load() != 0 {
			t.Error("its root disk is not here, or was made anew")
		}
		deploy(t, l.n, hello(lazyHello))
		deploy(t, l.n, hello(lazyHello))
		if n := strings.Count(l.log.String(), "come whole before"); n != 1 {
			t.Errorf("said %d times\n%s", n, l.log)
		}
	})
}
