package base

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/snapshot"
)

// A node is not told when a revision is gone, and one without pods is no sign of it:
// a service that is scaled to zero is what snapshots are for. What the node does know
// is which snapshots guests run from, when one was last restored, and how much space
// all of them take. So a snapshot is kept as long as a guest runs from it; else for some
// time after its last use; and not so long when there are too many bytes of them. With
// its image it goes in any case (Collect), which the kubelet removes where no pod needs it.

const (
	// budgetShare is the part of the file system that snapshots may take where no
	// setting says it: one in so many.
	budgetShare = 5
	// evictGrace keeps a snapshot that was used just now: somebody may be about to.
	evictGrace = 10 * time.Minute
)

// used notes that a snapshot is used now, for whoever looks for what is not.
func used(snap *snapshot.Snapshot) error {
	now := time.Now()
	return os.Chtimes(snap.Dir, now, now)
}

// candidate is a snapshot that may go.
type candidate struct {
	id    string
	bytes int64
	last  time.Time // use
}

// victims removes, the longest unused first, what has not been used for keep (0: for
// ever), and as much more as has to go for the rest to be within the budget of bytes.
// remove says whether it could.
func victims(all []candidate, keep time.Duration, budget int64, now time.Time, remove func(candidate) (bool, error)) error {
	slices.SortFunc(all, func(a, b candidate) int { return a.last.Compare(b.last) })
	var total int64
	for _, c := range all {
		total += c.bytes
	}
	var errs []error
	for _, c := range all {
		idle := now.Sub(c.last)
		if idle < evictGrace || !(keep > 0 && idle > keep) && total <= budget {
			continue
		}
		gone, err := remove(c)
		if gone {
			total -= c.bytes
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Evict removes those snapshots below a data directory that have not been used for
// keep_snapshots of the settings, or are more than snapshot_budget_mib. Those that guests
// run from stay.
func Evict(dataDir string, cfg config.Config, log *slog.Logger) error {
	dir := filepath.Join(dataDir, "snapshots")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	store, err := snapshot.Open(dir)
	if err != nil {
		return err
	}
	return evict(store, dir, cfg, log)
}

func evict(store *snapshot.Store, dir string, cfg config.Config, log *slog.Logger) error {
	list, err := store.List("", nil)
	if err != nil {
		return fmt.Errorf("looking for snapshots that nobody uses: %w", err)
	}
	budget := int64(cfg.SnapshotBudget) << 20
	if budget == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
		budget = int64(st.Blocks) * st.Bsize / budgetShare
	}
	var all []candidate
	for _, s := range list {
		if !strings.HasPrefix(s.Function, basePrefix) && !strings.HasPrefix(s.Function, readyPrefix) {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, s.ID))
		if err != nil {
			continue // gone meanwhile
		}
		all = append(all, candidate{s.ID, s.DiskBytes, st.ModTime()})
	}
	return victims(all, cfg.KeepSnapshots.D(), budget, time.Now(), func(c candidate) (bool, error) {
		gone, err := store.RemoveUnused(c.id)
		if gone {
			log.Info("removed a snapshot that nobody used", "snapshot", c.id, "last_use", c.last, "bytes", c.bytes)
		}
		return gone, err
	})
}
