package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
)

// recorder writes the invocations' records, many in one transaction, off the
// requests' way. When the disk is slower than the requests it holds them back
// rather than lose records.
type recorder struct {
	db   *sql.DB
	keep int64 // negative: none
	hook func(api.Invocation)
	log  *slog.Logger

	in   chan api.Invocation
	over chan struct{} // closed when the writer has ended

	mu     sync.RWMutex // guards closed; held for reading while sending
	closed bool
}

const (
	recordBuffer = 4096                  // records that may wait for the writer
	recordBatch  = 1024                  // records in one transaction
	recordDelay  = 50 * time.Millisecond // how long the first of a batch waits for others
	trimEvery    = 10000                 // records between two looks at how many are kept
)

func newRecorder(db *sql.DB, keep int64, hook func(api.Invocation), log *slog.Logger) *recorder {
	r := &recorder{db: db, keep: keep, hook: hook, log: log, in: make(chan api.Invocation, recordBuffer), over: make(chan struct{})}
	go r.run()
	return r
}

// Record stores the record of an invocation that never got a lease; those that
// did are stored when the lease is released.
func (n *Node) Record(rec api.Invocation) {
	if rec.ID == "" {
		rec.ID = newID("")
	}
	n.events.tell(api.Event{Kind: api.EventInvocation, Function: rec.Function, Invocation: &rec})
	n.rec.put(rec)
}

func (r *recorder) put(rec api.Invocation) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return
	}
	r.in <- rec
}

// close writes what is left. It is idempotent.
func (r *recorder) close() error {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.in)
	}
	r.mu.Unlock()
	<-r.over
	return nil
}

func (r *recorder) run() {
	defer close(r.over)
	batch := make([]api.Invocation, 0, recordBatch)
	sinceTrim := trimEvery
	for first := range r.in {
		batch = append(batch[:0], first)
		batch = r.collect(batch)
		if r.keep < 0 {
			// Nothing is to be kept but the counts.
		} else if err := r.write(batch); err != nil {
			r.log.Error("storing records", "lost", len(batch), "error", err)
		}
		if r.hook != nil {
			for _, rec := range batch {
				r.hook(rec)
			}
		}
		if sinceTrim += len(batch); sinceTrim >= trimEvery {
			sinceTrim = 0
			r.trim()
		}
	}
}

// collect adds to the batch what comes within the delay.
func (r *recorder) collect(batch []api.Invocation) []api.Invocation {
	timer := time.NewTimer(recordDelay)
	defer timer.Stop()
	for len(batch) < recordBatch {
		select {
		case rec, ok := <-r.in:
			if !ok {
				return batch
			}
			batch = append(batch, rec)
		case <-timer.C:
			return batch
		}
	}
	return batch
}

const recordColumns = "id, function, instance, snapshot, start, time_ns, status, failure, error, bytes_in, bytes_out, trace"

// phaseColumns are the names of the phases' columns, in the order of
// api.PhaseNames.
var phaseColumns = strings.Join(api.PhaseNames, "_us, ") + "_us"

func (r *recorder) write(batch []api.Invocation) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	return inTx(ctx, r.db, func(tx *sql.Tx) error { return insert(ctx, tx, batch) })
}

func insert(ctx context.Context, tx *sql.Tx, batch []api.Invocation) error {
	n := 12 + len(api.PhaseNames) + 3
	stmt, err := tx.PrepareContext(ctx, "INSERT INTO invocations ("+recordColumns+", "+phaseColumns+", memory, disk, container) VALUES (?"+strings.Repeat(", ?", n-1)+")")
	if err != nil {
		return err
	}
	defer stmt.Close()
	for i := range batch {
		values, err := recordValues(&batch[i])
		if err != nil {
			return err
		}
		if _, err := stmt.ExecContext(ctx, values...); err != nil {
			return err
		}
	}
	return nil
}

func recordValues(rec *api.Invocation) ([]any, error) {
	values := []any{rec.ID, rec.Function, rec.Instance, rec.Snapshot, string(rec.Start), rec.Time.UnixNano(),
		rec.Status, string(rec.Failure), rec.Error, rec.BytesIn, rec.BytesOut, rec.Trace}
	rec.Phases.Each(func(_ string, d time.Duration) { values = append(values, d.Microseconds()) })
	memory, err := column(rec.Memory)
	if err != nil {
		return nil, err
	}
	disk, err := column(rec.Disk)
	if err != nil {
		return nil, err
	}
	container, err := column(rec.Container)
	return append(values, memory, disk, container), err
}

// column is JSON, or NULL for what is not there.
func column[T any](v *T) (any, error) {
	if v == nil {
		return nil, nil
	}
	b, err := json.Marshal(v)
	return string(b), err // a text: SQLite's functions for JSON take bytes for something else
}

// trim deletes the oldest records beyond those that are kept.
func (r *recorder) trim() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if err := trim(ctx, r.db, max(r.keep, 0)); err != nil {
		r.log.Error("trimming records", "error", err)
	}
}

// InvocationFilter selects records; a negative limit is none.
type InvocationFilter = api.InvocationQuery

// Invocations returns the records that the filter selects, oldest first. The
// last ones may be missing for as long as a batch is collected.
func (n *Node) Invocations(ctx context.Context, f InvocationFilter) ([]api.Invocation, error) {
	return n.db.invocations(ctx, f)
}

func (d *database) invocations(ctx context.Context, f InvocationFilter) ([]api.Invocation, error) {
	limit := orDefault(f.Limit, 100)
	where, args, err := selected(f)
	if err != nil {
		return nil, fmt.Errorf("reading records: %w", err)
	}
	rows, err := d.main.QueryContext(ctx, "SELECT * FROM (SELECT seq, "+recordColumns+", "+phaseColumns+
		", memory, disk, container FROM invocations WHERE "+where+" ORDER BY time_ns DESC, seq DESC LIMIT ?) ORDER BY time_ns, seq", append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("reading records: %w", err)
	}
	defer rows.Close()
	var out []api.Invocation
	for rows.Next() {
		_, rec, err := scanRecord(rows)
		if err != nil {
			return nil, fmt.Errorf("reading records: %w", err)
		}
		out = append(out, rec)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading records: %w", err)
	}
	return out, nil
}

// selected is the filter as a condition on the table.
func selected(f InvocationFilter) (where string, args []any, err error) {
	first, last, err := f.StatusRange()
	if err != nil {
		return "", nil, err
	}
	where = "true"
	and := func(given bool, condition string, values ...any) {
		if given {
			where, args = where+" AND "+condition, append(args, values...)
		}
	}
	and(!f.Since.IsZero(), "time_ns >= ?", nanos(f.Since))
	and(!f.Until.IsZero(), "time_ns < ?", nanos(f.Until))
	and(f.ID != "", "id = ?", f.ID)
	// When that one has been deleted, so have all that are older, and none is after it.
	and(f.After != "", "(time_ns, seq) < (SELECT time_ns, seq FROM invocations WHERE id = ?)", f.After)
	and(f.Function != "", "function = ?", f.Function)
	and(f.Instance != "", "instance = ?", f.Instance)
	and(f.Start != "", "start = ?", string(f.Start))
	and(f.Status != "", "status BETWEEN ? AND ?", first, last)
	and(f.Failure == api.AnyFailure, "failure <> ''")
	and(f.Failure != "" && f.Failure != api.AnyFailure, "failure = ?", string(f.Failure))
	and(f.Slower > 0, "total_us > ?", f.Slower.Microseconds())
	return where, args, nil
}

// nanos is a time since 1970, the first or the last that there is for one that is beyond.
func nanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

func scanRecord(rows *sql.Rows) (seq int64, rec api.Invocation, err error) {
	var at int64
	var memory, disk, container []byte
	us := make([]int64, len(api.PhaseNames))
	dest := []any{&seq, &rec.ID, &rec.Function, &rec.Instance, &rec.Snapshot, &rec.Start, &at, &rec.Status, &rec.Failure, &rec.Error, &rec.BytesIn, &rec.BytesOut, &rec.Trace}
	for i := range us {
		dest = append(dest, &us[i])
	}
	if err := rows.Scan(append(dest, &memory, &disk, &container)...); err != nil {
		return seq, rec, err
	}
	rec.Time = time.Unix(0, at).UTC()
	p := &rec.Phases
	for i, d := range []*time.Duration{&p.Queue, &p.Slot, &p.Spawn, &p.Load, &p.Install, &p.Resume, &p.Boot,
		&p.Clone, &p.Init, &p.Connect, &p.Process, &p.Stream, &p.Total} {
		*d = time.Duration(us[i]) * time.Microsecond
	}
	if memory != nil {
		err = json.Unmarshal(memory, &rec.Memory)
	}
	if disk != nil {
		err = errors.Join(err, json.Unmarshal(disk, &rec.Disk))
	}
	if container != nil {
		err = errors.Join(err, json.Unmarshal(container, &rec.Container))
	}
	return seq, rec, err
}
