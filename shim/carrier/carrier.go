// Package carrier takes containers' ready snapshots to the object store, and fetches them from there: it is
// what the program skep-store does. Shims start that (package base) in place of talking to the object store
// themselves: they would all be larger for it, and a push goes on when a shim ends.
package carrier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/shim/base/ready"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer"
)

// Carrier has what shims share, and the object store.
type Carrier struct {
	DataDir   string // of the shims
	Store     *remote.Store
	Snapshots *snapshot.Store
	Images    transfer.Images
	Log       *slog.Logger
}

// Pull brings here the newest snapshot of the object store that is what is wanted, whose root disk is here,
// and returns its id.
func (c *Carrier) Pull(ctx context.Context, want snapshot.Want) (id string, err error) {
	found, err := transfer.Find(ctx, c.Store, want)
	if err != nil {
		return "", err
	}
	id = found.Entry.ID
	if _, err := found.Pull(ctx, c.Store, c.Snapshots, nil); err != nil {
		return "", fmt.Errorf("pulling snapshot %s: %w", id, err)
	}
	dir, err := c.Snapshots.Dir(id)
	if err == nil {
		err = found.Came(dir)
	}
	if err != nil { // it is pushed again, and that is all
		c.Log.Warn("noting where a snapshot came from", "snapshot", id, "error", err)
	}
	return id, nil
}

// What fails to be pushed is tried again after a time that doubles from pushRetry to pushMost, for pushFor; then
// by who comes after the next container.
const (
	pushRetry = 5 * time.Second
	pushMost  = 2 * time.Minute
	pushFor   = 20 * time.Minute
)

// Push pushes all ready snapshots that the object store has not, until none is left. Of the processes of a
// host one does; filelock.ErrHeld says that another is at it.
func (c *Carrier) Push(ctx context.Context) error {
	claim, err := filelock.TryClaim(filepath.Join(c.DataDir, "claims", "push"))
	if err != nil {
		return err
	}
	defer func() { _ = claim.Release() }()
	began := time.Now()
	for wait := pushRetry; ; wait = min(2*wait, pushMost) {
		err := c.pushDue(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Since(began) > pushFor {
			return fmt.Errorf("gave up after %v: %w", pushFor, err)
		}
		c.Log.Warn("pushing snapshots to the object store", "error", err, "retry_in", wait.String())
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// pushDue pushes until nothing is due any more.
func (c *Carrier) pushDue(ctx context.Context) error {
	tried := map[string]bool{}
	var errs []error
	for {
		due, err := ready.Due(c.DataDir)
		if err != nil {
			return err
		}
		any := false
		for _, id := range due {
			if !tried[id] {
				any, tried[id] = true, true
				err := c.push(ctx, id)
				if errors.Is(err, remote.ErrUnavailable) || errors.Is(err, remote.ErrNoKey) || ctx.Err() != nil {
					return err
				}
				errs = append(errs, err)
			}
		}
		if !any {
			return errors.Join(errs...)
		}
	}
}

func (c *Carrier) push(ctx context.Context, id string) error {
	snap, err := c.Snapshots.Take(ctx, id)
	if errors.Is(err, snapshot.ErrNotFound) {
		return nil
	}
	if err != nil {
		c.Log.Warn("a snapshot is not pushed", "snapshot", id, "error", err) // and will not be another time
		return nil
	}
	defer snap.Release()
	img, err := c.Images.Get(snap.Manifest.ImageDigest)
	if errors.Is(err, image.ErrNotFound) {
		return nil // containerd has it not any more, so the snapshot goes, too
	}
	if err == nil {
		_, err = transfer.Push(ctx, c.Store, snap, img, c.Log, nil)
	}
	if err != nil {
		return fmt.Errorf("pushing snapshot %s: %w", id, err)
	}
	return nil
}
