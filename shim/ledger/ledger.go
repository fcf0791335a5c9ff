// Package ledger keeps the records of a host's containers: what shims have written to
// their journal goes into a database that has the form of the daemon's, skep.db in the
// shims' data directory. `skep records --containers` opens it, and on a cluster's nodes
// `skep containerd node`, which has metrics of it.
package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/shim/journal"
)

// Ledger is that of one data directory. Any number of processes may have it open.
type Ledger struct {
	journal journal.Journal
	records *node.Records
}

// File is the database in the data directory.
const File = "skep.db"

// Exists says that shims have left records in the data directory.
func Exists(dataDir string) bool {
	_, err := os.Stat(filepath.Join(dataDir, File))
	return err == nil || journal.Of(dataDir).Exists()
}

// Open opens it, and makes the database if there is none. The newest records are kept,
// so many; 0: all.
func Open(ctx context.Context, dataDir string, keep int) (*Ledger, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("keeping records of containers: %w", err)
	}
	records, err := node.OpenRecords(ctx, filepath.Join(dataDir, File), keep)
	if err != nil {
		return nil, fmt.Errorf("keeping records of containers: %w", err)
	}
	return &Ledger{journal.Of(dataDir), records}, nil
}

// Close closes the database.
func (l *Ledger) Close() error { return l.records.Close() }

// Collect takes over what shims have written.
func (l *Ledger) Collect(ctx context.Context) error {
	return l.journal.Take(ctx, func(entries []journal.Entry) error {
		var starts []api.Invocation
		var ends []node.RecordedExit
		for _, e := range entries {
			if e.Start != nil {
				starts = append(starts, *e.Start)
			}
			if e.Exit != nil {
				ends = append(ends, node.RecordedExit{ID: e.ID, Exit: *e.Exit})
			}
		}
		return l.records.Add(ctx, starts, ends)
	})
}

// Invocations returns the records that a query selects, oldest first, those that shims
// have just written among them.
func (l *Ledger) Invocations(ctx context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	if err := l.Collect(ctx); err != nil {
		return nil, err
	}
	return l.records.Invocations(ctx, q)
}

// Follow collects, and calls f for each record that has come since the call before,
// whoever has collected it; the first call says from where on, with what there is.
func (l *Ledger) Follow(ctx context.Context, since int64, f func(api.Invocation)) (last int64, err error) {
	if err := l.Collect(ctx); err != nil {
		return since, err
	}
	return l.records.Since(ctx, since, f)
}

// Last is since which Follow has only what is new.
func (l *Ledger) Last(ctx context.Context) (int64, error) { return l.records.Last(ctx) }
