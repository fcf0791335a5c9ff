package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skep-dev/skep/image"
)

// imageSweep is the time between two looks at what images nothing needs.
const imageSweep = 10 * time.Minute

// imageCollector is an image store that knows when its images were last used.
type imageCollector interface {
	imageStore
	// Use notes that an image is used now, by this process until it removes it.
	Use(digest string) error
	// Usage says when it was last used, and what it occupies on disk.
	Usage(digest string) (last time.Time, bytes int64, err error)
}

var _ imageCollector = (*image.Store)(nil)

// idleImage is one that nothing needs.
type idleImage struct {
	digest string
	last   time.Time
	bytes  int64
}

// collectImages removes, now and then until the node drains, images that nothing
// has needed for long, or that there is no room for.
func (n *Node) collectImages() {
	store, ok := n.images.(imageCollector)
	if !ok || n.cfg.ImageGrace < 0 && n.cfg.ImageBytes == 0 {
		return
	}
	n.spawn(func() {
		tick := time.NewTicker(imageSweep)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-n.drain:
				return
			}
			if err := n.sweepImages(n.ctx, store); err != nil {
				n.log.Warn("looking for images that nothing needs", "error", err)
			}
		}
	})
}

// sweepImages notes which images are in use, and removes of the others those
// that are due. While a deploy is under way it does nothing: what that has
// fetched is not in use yet.
func (n *Node) sweepImages(ctx context.Context, store imageCollector) error {
	if !n.deploying.TryLock() {
		return nil
	}
	defer n.deploying.Unlock()
	idle, total, err := n.idleImages(ctx, store)
	if err != nil {
		return err
	}
	slices.SortFunc(idle, func(a, b idleImage) int { return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.digest, b.digest)) })
	for _, i := range idle {
		why := ""
		switch unused := time.Since(i.last); {
		case n.cfg.ImageGrace >= 0 && unused >= n.cfg.ImageGrace:
			why = fmt.Sprintf("nothing has needed it for %v", unused.Round(time.Second))
		case n.cfg.ImageBytes > 0 && total > n.cfg.ImageBytes:
			why = fmt.Sprintf("images take %d bytes of %d, and nothing needs it", total, n.cfg.ImageBytes)
		default:
			continue
		}
		err := store.Remove(i.digest)
		if isOthersDoing(err) {
			continue
		}
		if err != nil {
			return err
		}
		total -= i.bytes
		n.log.Info("removed an image", "image", i.digest, "bytes", i.bytes, "reason", why)
	}
	return nil
}

// idleImages lists the images that nothing needs, and what all images occupy. It
// notes that the others are in use.
func (n *Node) idleImages(ctx context.Context, store imageCollector) (idle []idleImage, total int64, err error) {
	digests, err := store.List()
	if err != nil {
		return nil, 0, fmt.Errorf("listing images: %w", err)
	}
	functions, snapshots, err := n.imageUsers(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, digest := range digests {
		used := len(functions[digest])+len(snapshots[digest]) > 0
		if used {
			if err := store.Use(digest); err != nil && !isOthersDoing(err) {
				return nil, 0, err
			}
		}
		last, bytes, err := store.Usage(digest)
		if isOthersDoing(err) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		total += bytes
		if !used {
			idle = append(idle, idleImage{digest, last, bytes})
		}
	}
	return idle, total, nil
}
