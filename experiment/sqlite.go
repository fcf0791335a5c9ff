package experiment

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/skep-dev/skep/api"
)

// DatabaseFile is the raw data again, for queries.
const DatabaseFile = "samples.db"

// columns of a sample that have a name of their own; everything is in "json".
const columns = "experiment, function, variant, n, input, run, instance, session, time, replayed, total_ms, faults, prefetched, bytes_read"

// WriteDatabase makes the SQLite database of a directory of results anew.
func WriteDatabase(ctx context.Context, dir string, d *Data) (err error) {
	path := filepath.Join(dir, DatabaseFile)
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(tmp))
	if err != nil {
		return err
	}
	err = errors.Join(fillDatabase(ctx, db, d), db.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

func fillDatabase(ctx context.Context, db *sql.DB, d *Data) error {
	phases := strings.Join(api.PhaseNames[:len(api.PhaseNames)-1], "_us INTEGER, ") + "_us INTEGER"
	schema := `CREATE TABLE sessions (id INTEGER PRIMARY KEY, time TEXT, skep TEXT, vmm TEXT, cpu TEXT, cpus INTEGER, kernel TEXT, disk TEXT, json TEXT);
CREATE TABLE samples (` + columns + `, ` + phases + `, json TEXT);
CREATE INDEX samples_by_point ON samples (experiment, function, variant, n, run);`
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	for _, s := range d.Sessions {
		b, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?)", s.ID, s.Time.Format(time.RFC3339Nano), s.Skep, s.VMM, s.CPU, s.CPUs, s.Kernel, s.Disk, string(b)); err != nil {
			return err
		}
	}
	n := strings.Count(columns, ",") + 1 + len(api.PhaseNames)
	insert, err := tx.PrepareContext(ctx, "INSERT INTO samples VALUES (?"+strings.Repeat(",?", n-1)+")")
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, s := range d.Samples {
		row, err := rowOf(s)
		if err != nil {
			return err
		}
		if _, err := insert.ExecContext(ctx, row...); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func rowOf(s Sample) ([]any, error) {
	var prefetched, read any
	phases := make([]any, len(api.PhaseNames)-1)
	switch {
	case s.Replay != nil:
		prefetched, read = s.Replay.Pages, s.Replay.Bytes
	case s.Record != nil:
		if m := s.Record.Memory; m != nil {
			prefetched, read = m.Prefetched, m.BytesRead
		}
		i := 0
		s.Record.Phases.Each(func(name string, d time.Duration) {
			if i < len(phases) {
				phases[i] = d.Microseconds()
			}
			i++
		})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	row := []any{s.Experiment, s.Function, s.Variant, s.N, s.Input, s.Run, s.Instance, s.Session, s.Time.Format(time.RFC3339Nano), s.Replayed, s.Total(), s.Faults(), prefetched, read}
	return append(append(row, phases...), string(b)), nil
}
