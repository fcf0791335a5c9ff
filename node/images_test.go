package node

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
)

// storedImages is the fake images of some digests, which can be removed.
type storedImages struct {
	fakeImages
	mu      sync.Mutex // guards digests: the node removes images by itself
	digests []string
	inUse   string // the one that another process uses
}

func (s *storedImages) List() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.digests), nil
}

func (s *storedImages) Remove(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.digests, digest)
	if i < 0 {
		return image.ErrNotFound
	}
	if digest == s.inUse {
		return image.ErrInUse
	}
	s.digests = slices.Delete(s.digests, i, i+1)
	return nil
}

func TestPruneImages(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		store := &storedImages{digests: []string{"sha256:one", "sha256:two", "sha256:three", "sha256:used"}, inUse: "sha256:used"}
		deps := w.deps()
		deps.OpenImages = func(context.Context, string) (image.Fetcher, error) { return store, nil }
		n, err := Open(context.Background(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}, deps)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close(context.Background())
		n.cfg.KeepRevisions = 1 // so that no earlier one needs its image
		of := func(ref string) func(*api.Function) { return func(f *api.Function) { f.Image = ref } }
		deploy(t, n, hello(of("one")))
		l := acquire(t, n, AcquireOptions{})
		deploy(t, n, hello(of("two"))) // the instance of the first one goes on

		n.deploying.RLock()
		if _, err := n.PruneImages(t.Context()); !errors.Is(err, ErrDeploying) {
			t.Errorf("pruned while a deploy is under way: %v", err)
		}
		n.deploying.RUnlock()

		all, err := n.Images(t.Context())
		if err != nil || len(all) != 4 || !slices.Equal(all[1].Functions, []string{"hello"}) || len(all[1].Snapshots) != 1 || all[2].InUse() {
			t.Errorf("%+v, %v", all, err)
		}
		prune(t, n, "sha256:three")
		l.Release(api.Invocation{})
		synctest.Wait()
		prune(t, n, "sha256:one")
		if err := n.Remove(t.Context(), "hello"); err != nil {
			t.Fatal(err)
		}
		prune(t, n, "sha256:two")
		prune(t, n)
	})
}

// usedImages are stored images of which it is known when they were used.
type usedImages struct {
	storedImages
	last map[string]time.Time
}

func (s *usedImages) Use(digest string) error {
	if !slices.Contains(s.digests, digest) {
		return errors.New("no digest")
	}
	s.last[digest] = time.Now()
	return nil
}

func (s *usedImages) Usage(digest string) (time.Time, int64, error) {
	return s.last[digest], 100, nil
}

// TestImagesThatNothingNeedsGo: after their grace, or before it where they take
// too much room; never one that is needed, and none while a deploy is under way.
func TestImagesThatNothingNeedsGo(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		after  map[time.Duration]string // time since the start: images that are left
	}{
		{"grace", func(c *Config) { c.ImageGrace = time.Hour }, map[time.Duration]string{
			50 * time.Minute: "one two three", 70 * time.Minute: "one two", 48 * time.Hour: "one two"}},
		{"by default a week", func(*Config) {}, map[time.Duration]string{6 * 24 * time.Hour: "one two three", 8 * 24 * time.Hour: "one two"}},
		{"never", func(c *Config) { c.ImageGrace = -1 }, map[time.Duration]string{1000 * time.Hour: "one two three"}},
		{"room", func(c *Config) { c.ImageBytes = 299 }, map[time.Duration]string{time.Minute: "one two three", 11 * time.Minute: "one two"}},
		{"room enough", func(c *Config) { c.ImageGrace, c.ImageBytes = -1, 300 }, map[time.Duration]string{time.Hour: "one two three"}},
		{"another process uses it", func(c *Config) { c.ImageGrace = time.Hour }, map[time.Duration]string{48 * time.Hour: "one two three"}},
		{"no room for what is needed", func(c *Config) { c.ImageBytes = 1 }, map[time.Duration]string{time.Hour: "one two"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				store := &usedImages{last: map[string]time.Time{}}
				for _, d := range []string{"one", "two", "three"} {
					store.digests = append(store.digests, "sha256:"+d)
					store.last["sha256:"+d] = began
				}
				if c.name == "another process uses it" {
					store.inUse = "sha256:three"
				}
				deps := w.deps()
				deps.OpenImages = func(context.Context, string) (image.Fetcher, error) { return store, nil }
				cfg := Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}
				c.change(&cfg)
				n, err := Open(context.Background(), cfg, deps)
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close(context.Background())
				deploy(t, n, hello(func(f *api.Function) { f.Image = "one" })) // kept as a revision
				deploy(t, n, hello(func(f *api.Function) { f.Image = "two" }))
				for _, at := range slices.Sorted(maps.Keys(c.after)) {
					time.Sleep(time.Until(began.Add(at)))
					synctest.Wait()
					var want []string
					for d := range strings.FieldsSeq(c.after[at]) {
						want = append(want, "sha256:"+d)
					}
					if left, _ := store.List(); !slices.Equal(left, want) {
						t.Errorf("after %v there are %q: want %q", at, left, want)
					}
				}
			})
		})
	}
}

// TestNoImageGoesDuringADeploy: not even one whose time has come.
func TestNoImageGoesDuringADeploy(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		store := &usedImages{last: map[string]time.Time{}}
		store.digests = []string{"sha256:one"}
		deps := w.deps()
		deps.OpenImages = func(context.Context, string) (image.Fetcher, error) { return store, nil }
		n, err := Open(context.Background(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}, deps)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close(context.Background())
		n.deploying.RLock()
		time.Sleep(time.Hour)
		synctest.Wait()
		if left, _ := store.List(); len(left) != 1 {
			t.Error("an image that the deploy may have fetched was removed")
		}
		n.deploying.RUnlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		if left, _ := store.List(); len(left) != 0 {
			t.Error("it was not removed afterwards")
		}
	})
}

// TestImagesAreUsedFromTheStart: what a function of an earlier daemon needs, no
// other process may remove.
func TestImagesAreUsedFromTheStart(t *testing.T) {
	w := newWorld(t)
	deps := w.deps()
	store := &usedImages{storedImages: storedImages{digests: []string{"sha256:one", "sha256:two"}}, last: map[string]time.Time{}}
	deps.OpenImages = func(context.Context, string) (image.Fetcher, error) { return store, nil }
	cfg := Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}
	n, err := Open(t.Context(), cfg, deps)
	must(t, err)
	deploy(t, n, hello(func(f *api.Function) { f.Image = "one" }))
	damaged := filepath.Join(w.dir, "snapshots", snapshotIDs(t, n)[0], "manifest.json")
	must(t, n.Close(t.Context()))
	must(t, os.WriteFile(damaged, nil, 0o600)) // it says of no image
	clear(store.last)
	n, err = Open(t.Context(), cfg, deps)
	must(t, err)
	defer n.Close(context.Background())
	if used := slices.Collect(maps.Keys(store.last)); !slices.Equal(used, []string{"sha256:one"}) {
		t.Errorf("in use are %q", used)
	}
}

// prune removes images, and compares them with those that are wanted.
func prune(t *testing.T, n *Node, want ...string) {
	t.Helper()
	removed, err := n.PruneImages(t.Context())
	var got []string
	for _, i := range removed {
		got = append(got, i.Digest)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("removed %q, %v; want %q", got, err, want)
	}
}
