package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/skep-dev/skep/api"
)

// Records is a database that has records alone, in the table in which a node has its
// own: of containers' starts, which no daemon has seen. Several processes may have it
// open.
type Records struct {
	db   *database
	keep int // records that are kept; 0: all
}

// OpenRecords opens the database at path, and makes it if it is not there. Of what is
// added the newest are kept, so many; 0: all.
func OpenRecords(ctx context.Context, path string, keep int) (*Records, error) {
	db, err := openDatabase(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Records{db, keep}, nil
}

// Close closes the database.
func (r *Records) Close() error { return r.db.close() }

// RecordedExit is the end of what a record is about.
type RecordedExit struct {
	ID   string // of the record
	Exit api.ContainerExit
}

// Add stores records, and notes how those have ended that ends names: all or nothing.
func (r *Records) Add(ctx context.Context, records []api.Invocation, ends []RecordedExit) error {
	err := inTx(ctx, r.db.records, func(tx *sql.Tx) error {
		if err := insert(ctx, tx, records); err != nil {
			return err
		}
		for _, e := range ends {
			exit, err := json.Marshal(e.Exit)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "UPDATE invocations SET container = json_set(container, '$.exit', json(?)) WHERE id = ?", string(exit), e.ID); err != nil {
				return err
			}
		}
		if r.keep > 0 {
			return trim(ctx, tx, int64(r.keep))
		}
		return nil
	})
	return describeDB("storing records", err)
}

// Invocations returns the records that the filter selects, oldest first.
func (r *Records) Invocations(ctx context.Context, f InvocationFilter) ([]api.Invocation, error) {
	return r.db.invocations(ctx, f)
}

// Last is the number of the newest record; 0: there is none.
func (r *Records) Last(ctx context.Context) (last int64, err error) {
	err = r.db.main.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM invocations").Scan(&last)
	return last, describeDB("reading records", err)
}

// Since calls f for each record that came after the one of that number, in the order in
// which they came, and returns the number of the last.
func (r *Records) Since(ctx context.Context, seq int64, f func(api.Invocation)) (last int64, err error) {
	rows, err := r.db.main.QueryContext(ctx, "SELECT seq, "+recordColumns+", "+phaseColumns+", memory, disk, container FROM invocations WHERE seq > ? ORDER BY seq", seq)
	if err != nil {
		return seq, describeDB("reading records", err)
	}
	defer rows.Close()
	for rows.Next() {
		n, rec, err := scanRecord(rows)
		if err != nil {
			return seq, describeDB("reading records", err)
		}
		f(rec)
		seq = n
	}
	return seq, describeDB("reading records", rows.Err())
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// trim deletes the oldest records beyond those that are kept.
func trim(ctx context.Context, db execer, keep int64) error {
	_, err := db.ExecContext(ctx, "DELETE FROM invocations WHERE seq <= (SELECT max(seq) FROM invocations) - ?", keep)
	if err != nil {
		return fmt.Errorf("deleting old records: %w", err)
	}
	return nil
}
