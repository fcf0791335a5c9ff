package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
)

// ErrDeploying is wrapped when images cannot be removed since a deploy is under
// way, which may be about to use any of them.
var ErrDeploying = errors.New("a deploy is under way")

// imageStore is a Fetcher that can tell what it holds and remove it.
type imageStore interface {
	image.Fetcher
	List() ([]string, error)
	Remove(digest string) error
}

var _ imageStore = (*image.Store)(nil)

// Images lists the root disks in the store, and who needs each.
func (n *Node) Images(ctx context.Context) ([]api.Image, error) {
	store, ok := n.images.(imageStore)
	if !ok {
		return nil, errors.New("this node's image store cannot be listed")
	}
	digests, err := store.List()
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	functions, snapshots, err := n.imageUsers(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Image
	for _, digest := range digests {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		i := api.Image{Digest: digest, Functions: functions[digest], Snapshots: snapshots[digest]}
		img, err := store.Get(digest)
		if errors.Is(err, image.ErrNotFound) {
			continue // another process has removed it just now
		}
		if err != nil {
			i.Problem = err.Error()
		}
		i.DiskBytes = img.DiskBytes
		out = append(out, i)
	}
	return out, nil
}

// imageUsers says which functions and which snapshots need an image, by digest.
// A function needs those of its kept revisions, too, and of instances that serve
// for one that is kept no longer.
func (n *Node) imageUsers(ctx context.Context) (functions, snapshots map[string][]string, err error) {
	kept, err := n.db.revisionImages(ctx)
	if err != nil {
		return nil, nil, err
	}
	functions, snapshots = map[string][]string{}, map[string][]string{}
	for _, p := range n.allPools() {
		uses := map[string]bool{}
		p.mu.Lock()
		for _, inst := range p.instances {
			uses[inst.dep.image.Digest] = true
		}
		p.mu.Unlock()
		if d := p.current.Load(); d != nil {
			uses[d.image.Digest] = true
		}
		for _, r := range kept {
			if r[0] == p.name {
				uses[r[1]] = true
			}
		}
		for digest := range maps.Keys(uses) {
			functions[digest] = append(functions[digest], p.name)
		}
	}
	for _, names := range functions {
		slices.Sort(names)
	}
	all, err := n.snaps.List("", nil)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all {
		snapshots[s.ImageDigest] = append(snapshots[s.ImageDigest], s.ID)
	}
	return functions, snapshots, nil
}

// PruneImages removes the images that neither a function nor a snapshot needs,
// nor another process uses, and returns them.
func (n *Node) PruneImages(ctx context.Context) ([]api.Image, error) {
	if !n.deploying.TryLock() {
		return nil, fmt.Errorf("removing images: %w", ErrDeploying)
	}
	defer n.deploying.Unlock()
	all, err := n.Images(ctx)
	if err != nil {
		return nil, err
	}
	var removed []api.Image
	for _, i := range all {
		if i.InUse() {
			continue
		}
		switch err := n.images.(imageStore).Remove(i.Digest); {
		case err == nil:
			removed = append(removed, i)
		case !isOthersDoing(err):
			return removed, err
		}
	}
	return removed, nil
}

// isOthersDoing says that an image cannot be removed since another process uses it,
// or has removed it.
func isOthersDoing(err error) bool {
	return errors.Is(err, image.ErrInUse) || errors.Is(err, image.ErrNotFound)
}
