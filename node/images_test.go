package node

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
)

// storedImages is the fake images of some digests, which can be removed.
type storedImages struct {
	fakeImages
	digests []string
}

func (s *storedImages) List() ([]string, error) { return slices.Clone(s.digests), nil }

func (s *storedImages) Remove(digest string) error {
	i := slices.Index(s.digests, digest)
	if i < 0 {
		return image.ErrNotFound
	}
	s.digests = slices.Delete(s.digests, i, i+1)
	return nil
}

func TestPruneImages(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		store := &storedImages{digests: []string{"sha256:one", "sha256:two", "sha256:three"}}
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
		if err != nil || len(all) != 3 || !slices.Equal(all[1].Functions, []string{"hello"}) || len(all[1].Snapshots) != 1 || all[2].InUse() {
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
