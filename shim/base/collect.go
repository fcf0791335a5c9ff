package base

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/filelock"
)

// collectEvery is how seldom the shims of a host look for what nobody needs.
const collectEvery = 10 * time.Minute

// Collect removes root disks whose images are not known any more, and the
// snapshots of their guests, and those that nobody uses (Evict), if it is time to. What is in use stays. An image
// was used within grace stays, too: it may be about to be used again. This process
// must have no guest.
func (h *Host) Collect(ctx context.Context, grace time.Duration, known func(context.Context, []string) (map[string]bool, error)) error {
	stamp := h.dir(".collected")
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < min(grace, collectEvery) {
		return nil
	}
	claim, err := filelock.Claim(ctx, filepath.Join(h.dir("claims"), "collect"))
	if err != nil {
		return err
	}
	defer claim.Release()
	if err := os.WriteFile(stamp, nil, 0o600); err != nil {
		return err
	}
	all, err := h.Images.List()
	if err != nil {
		return err
	}
	have, err := known(ctx, all)
	if err != nil {
		return err
	}
	errs := []error{h.forget(), evict(h.snaps, h.dir("snapshots"), h.cfg, h.log)}
	gone := map[string]bool{}
	for _, digest := range all {
		last, _, err := h.Images.Usage(digest)
		if err != nil || have[digest] || time.Since(last) < grace {
			continue
		}
		switch err := h.Images.Remove(digest); {
		case err == nil:
			gone[digest] = true
			h.log.Info("removed the root disk of an image that containerd has not any more", "image", digest)
		case !errors.Is(err, image.ErrInUse) && !errors.Is(err, image.ErrNotFound):
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, h.removeSnapshots(gone))...)
}

// removeSnapshots removes those of guests whose root disks are gone.
func (h *Host) removeSnapshots(gone map[string]bool) error {
	if len(gone) == 0 {
		return nil
	}
	list, err := h.snaps.List("", nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		m, err := h.snaps.Manifest(s.ID)
		if err == nil && (strings.HasPrefix(m.Function, basePrefix) || strings.HasPrefix(m.Function, readyPrefix)) && gone[m.ImageDigest] {
			errs = append(errs, h.snaps.Remove(s.ID))
		}
	}
	return errors.Join(errs...)
}
