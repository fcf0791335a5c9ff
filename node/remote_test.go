package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/remote/seal"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer/mark"
)

// diskImages are fake images whose root disks are there to be read.
type diskImages struct {
	fakeImages
	disk string
}

func (i diskImages) Get(digest string) (image.Image, error) {
	img, err := i.fakeImages.Get(digest)
	img.Disk = i.disk
	return img, err
}

// join opens the world's node on a bucket that it shares with others.
func (w *world) join(t *testing.T, b remote.Bucket, push bool) *Node {
	t.Helper()
	return w.joinWith(t, remote.Options{Bucket: b}, push)
}

func (w *world) joinWith(t *testing.T, o remote.Options, push bool) *Node {
	t.Helper()
	disk := filepath.Join(w.dir, "disk")
	if err := os.WriteFile(disk, []byte("root disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	deps := w.deps()
	deps.Log = o.Log
	deps.Remote = store
	deps.OpenImages = func(context.Context, string) (image.Fetcher, error) { return diskImages{disk: disk}, nil }
	n, err := Open(context.Background(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Push: push}, deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.check(t)
	})
	return n
}

func inStore(t *testing.T, n *Node) []api.RemoteSnapshot {
	t.Helper()
	list, err := n.RemoteSnapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSnapshotTravels has one node make a snapshot, and another start from it, without a boot.
func TestSnapshotTravels(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		b := &remotetest.Memory{}
		a := maker.join(t, b, true)
		deploy(t, a, hello(nil))
		synctest.Wait()
		list := inStore(t, a)
		if len(list) != 1 || !list[0].Usable || !list[0].Here {
			t.Fatalf("in the store: %+v", list)
		}
		c := other.join(t, b, true)
		if list := inStore(t, c); len(list) != 1 || list[0].Usable || list[0].Here || !strings.Contains(list[0].Problem, "not deployed") {
			t.Errorf("seen from another: %+v", list)
		}
		deploy(t, c, hello(nil))
		if other.boots != 0 || other.restores == 0 {
			t.Errorf("%d boots, %d restores", other.boots, other.restores)
		}
		if ids := snapshotIDs(t, c); len(ids) != 1 || ids[0] != list[0].ID {
			t.Errorf("here are %v, want %s", ids, list[0].ID)
		}
		// Its own are not there any more; a start fetches it again.
		if err := c.RemoveSnapshot(list[0].ID); err != nil {
			t.Fatal(err)
		}
		l := acquire(t, c, AcquireOptions{Start: api.StartRestore})
		if l.Start() != api.StartRestore || other.boots != 0 {
			t.Errorf("a %s, %d boots", l.Start(), other.boots)
		}
		get(t, l)
		l.Release(api.Invocation{})
		synctest.Wait()
		if again := inStore(t, c); len(again) != 1 {
			t.Errorf("in the store: %+v", again)
		}
	})
}

// TestStoreThatIsOfNoUse has the store fail, be damaged or have nothing that fits: the function boots,
// and why it did is to be seen.
func TestStoreThatIsOfNoUse(t *testing.T) {
	spoil := func(what string) func(b *remotetest.Memory, w *world) {
		return func(b *remotetest.Memory, _ *world) {
			b.Spoil = func(key string, p []byte) []byte {
				if strings.Contains(key, what) {
					p[len(p)/2] ^= 1
				}
				return p
			}
		}
	}
	for name, trouble := range map[string]func(b *remotetest.Memory, w *world){
		"dead": func(b *remotetest.Memory, _ *world) {
			b.Fail = func(string, string) error { return remote.ErrUnavailable }
		},
		"damaged manifests": spoil("/snapshots/"),
		"damaged packs":     spoil("/packs/"),
		"another VMM":       func(_ *remotetest.Memory, w *world) { w.info.Version = "2" },
	} {
		t.Run(name, func(t *testing.T) {
			maker, other := newWorld(t), newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				b := &remotetest.Memory{}
				a := maker.join(t, b, false)
				deploy(t, a, hello(nil))
				id := snapshotIDs(t, a)[0]
				if _, err := a.PushSnapshot(t.Context(), id, nil); err != nil {
					t.Fatal(err)
				}
				trouble(b, other)
				c := other.join(t, b, false)
				deploy(t, c, hello(nil))
				ids := snapshotIDs(t, c)
				if other.boots != 1 || len(ids) != 1 || ids[0] == id {
					t.Errorf("%d boots, snapshots %v", other.boots, ids)
				}
				if _, err := c.PullSnapshot(t.Context(), "hello", "", nil); err == nil {
					t.Error("it was pulled")
				} else {
					t.Log(err)
				}
				if err := c.RemoveSnapshot(ids[0]); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				l := acquire(t, c, AcquireOptions{})
				if l.Start() != api.StartBoot || time.Since(began) > 10*time.Second {
					t.Errorf("a %s after %v", l.Start(), time.Since(began))
				}
				l.Release(api.Invocation{})
			})
		})
	}
}

// tenant is the source of the key of one of them.
func tenant(n byte) seal.Source {
	return func(context.Context) (*seal.Key, error) { return seal.New(bytes.Repeat([]byte{n, 's', 'k'}, 12)) }
}

func TestEncryptedSnapshotTravels(t *testing.T) {
	maker, other := newWorld(t), newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		b := &remotetest.Memory{}
		deploy(t, maker.joinWith(t, remote.Options{Bucket: b, Key: tenant(1)}, true), hello(nil))
		synctest.Wait()
		c := other.joinWith(t, remote.Options{Bucket: b, Key: tenant(1)}, true)
		deploy(t, c, hello(nil))
		if other.boots != 0 || other.restores == 0 {
			t.Errorf("%d boots, %d restores", other.boots, other.restores)
		}
		if list := inStore(t, c); len(list) != 1 || !list[0].Usable || !list[0].Here {
			t.Errorf("in the store: %+v", list)
		}
	})
}

// TestKeysThatAreOfNoUse has two nodes of one bucket differ in their keys, or not get one: the function boots, why is
// to be seen, and the key is not.
func TestKeysThatAreOfNoUse(t *testing.T) {
	away := func(context.Context) (*seal.Key, error) { return nil, errors.New("the key service is away") }
	for name, c := range map[string]struct {
		maker, other seal.Source
		want         string
		problem      error
	}{
		"another key":      {tenant(1), tenant(2), "it is encrypted with key", remote.ErrKey},
		"no key here":      {tenant(1), nil, "this node has none", remote.ErrKey},
		"not encrypted":    {nil, tenant(2), "it is not encrypted", remote.ErrKey},
		"a key not be had": {tenant(1), away, "the key service is away", remote.ErrNoKey},
	} {
		t.Run(name, func(t *testing.T) {
			maker, other := newWorld(t), newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				b := &remotetest.Memory{}
				a := maker.joinWith(t, remote.Options{Bucket: b, Key: c.maker}, false)
				deploy(t, a, hello(nil))
				id := snapshotIDs(t, a)[0]
				if _, err := a.PushSnapshot(t.Context(), id, nil); err != nil {
					t.Fatal(err)
				}
				keys := b.Keys("")
				var log syncBuffer
				n := other.joinWith(t, remote.Options{Bucket: b, Key: c.other, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, c.problem == remote.ErrNoKey)
				deploy(t, n, hello(nil))
				synctest.Wait()
				ids := snapshotIDs(t, n)
				if other.boots != 1 || len(ids) != 1 || ids[0] == id {
					t.Errorf("%d boots, snapshots %v", other.boots, ids)
				}
				if !strings.Contains(log.String(), c.want) {
					t.Errorf("the log does not say %q: %s", c.want, log.String())
				}
				for _, secret := range []string{"\x02sk\x02sk", "02736b02736b", "[2 115 107", `\x02sk`} {
					if strings.Contains(log.String(), secret) {
						t.Errorf("the log tells the key: %s", log.String())
					}
				}
				if _, err := n.PullSnapshot(t.Context(), "hello", "", nil); !errors.Is(err, c.problem) {
					t.Errorf("pulled: %v", err)
				}
				if !slices.Equal(keys, b.Keys("")) {
					t.Errorf("in the store are %v, were %v", b.Keys(""), keys)
				}
			})
		})
	}
}

// syncBuffer is a log that many write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestPushIsTriedAgain has the store be dead when a snapshot is made, and come back.
func TestPushIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		var back atomic.Bool
		b := &remotetest.Memory{Fail: func(string, string) error {
			if back.Load() {
				return nil
			}
			return remote.ErrUnavailable
		}}
		n := w.join(t, b, true)
		deploy(t, n, hello(nil))
		time.Sleep(time.Minute)
		synctest.Wait()
		back.Store(true)
		time.Sleep(pushMost)
		synctest.Wait()
		if list := inStore(t, n); len(list) != 1 {
			t.Errorf("in the store: %+v", list)
		}
		// It is not pushed again for nothing, until it has a working set.
		keys := b.Keys("")
		dir, err := n.snaps.Dir(snapshotIDs(t, n)[0])
		if err != nil {
			t.Fatal(err)
		}
		if mark.Due(dir) {
			t.Error("it is to be pushed again")
		}
		if err := os.WriteFile(filepath.Join(dir, "trace", "ws"), []byte("set"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * pushEvery)
		synctest.Wait()
		if len(b.Keys("")) != len(keys)+1 || mark.Due(dir) { // a pack more
			t.Errorf("in the store: %v, before %v", b.Keys(""), keys)
		}
	})
}

func TestWithoutStore(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	for _, err := range []error{
		second(n.PushSnapshot(t.Context(), "x", nil)), second(n.PullSnapshot(t.Context(), "x", "", nil)), second(n.RemoteSnapshots(t.Context(), "")),
		second(n.CollectStore(t.Context(), api.CollectRequest{})), second(n.VerifyStore(t.Context(), "", true)), second(n.StoreUsage(t.Context(), "")), n.RemoveRemoteSnapshot(t.Context(), "f", "x"),
	} {
		if !errors.Is(err, ErrNoStore) {
			t.Error(err)
		}
	}
	store, err := remote.New(remote.Options{Bucket: &remotetest.Memory{}})
	if err != nil {
		t.Fatal(err)
	}
	n.deps.Remote = store
	if _, err := n.PushSnapshot(t.Context(), "x", nil); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
	if _, err := n.PullSnapshot(t.Context(), "x", "y", nil); !errors.Is(err, remote.ErrNotThere) {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }
