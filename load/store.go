package load

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	_ "modernc.org/sqlite" // the driver

	"github.com/skep-dev/skep/internal/filelock"
)

// Files in a directory of results.
const (
	SamplesFile  = "calls.jsonl" // a line for the plan, then one for each call that is over and each look at memory
	DatabaseFile = "calls.db"    // the same for queries; made anew from SamplesFile
)

// header is what the first line says.
type header struct {
	Source    string    `json:"source"`
	Seed      uint64    `json:"seed"`
	Calls     int       `json:"calls"`
	Digest    string    `json:"digest"`
	URL       string    `json:"url"`
	Functions []string  `json:"functions"`
	Began     time.Time `json:"began"`
}

type line struct {
	Plan   *header `json:"plan,omitempty"`
	Memory *Memory `json:"memory,omitempty"`
	*Sample
}

// store is a directory of results that is being added to.
type store struct {
	has    []bool // calls of the plan that are over
	failed context.CancelCauseFunc
	lock   *filelock.Lock

	mu   sync.Mutex // guards what follows
	file *os.File
	out  *bufio.Writer
	bad  error
	last *hdr.Histogram // microseconds, since lately was asked
}

func openStore(o Options) (s *store, err error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of results: %w", err)
	}
	s = &store{has: make([]bool, len(o.Plan.Calls)), last: hdr.New(1, maxMicros, 3)}
	path := filepath.Join(o.Dir, SamplesFile)
	want := header{Source: o.Plan.Source, Seed: o.Plan.Seed, Calls: len(o.Plan.Calls), Digest: o.Plan.Digest(), URL: o.URL, Functions: o.Plan.Functions, Began: time.Now()}
	if s.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, fmt.Errorf("opening results: %w", err)
	}
	if s.lock, err = filelock.Own(path); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another run writes it: %w", path, err), s.file.Close())
	}
	if err := s.begin(want); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), s.file.Close(), s.lock.Release())
	}
	return s, nil
}

// begin reads what the file has and cuts off a torn last line, or writes the header.
func (s *store) begin(want header) error {
	whole := int64(0)
	have, err := scan(s.file, func(l line, end int64) error {
		whole = end
		if l.Sample != nil && l.N >= 0 && l.N < len(s.has) {
			s.has[l.N] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	if have != nil && (have.Digest != want.Digest || have.URL != want.URL) {
		return fmt.Errorf("it has calls of another plan (%s, seed %d, at %s): choose another --out", have.Source, have.Seed, have.URL)
	}
	if err := s.file.Truncate(whole); err != nil {
		return err
	}
	if _, err := s.file.Seek(whole, io.SeekStart); err != nil {
		return err
	}
	s.out = bufio.NewWriterSize(s.file, 1<<16)
	if have == nil {
		return s.write(line{Plan: &want})
	}
	return nil
}

func (s *store) write(l line) error {
	b, err := json.Marshal(l)
	if err == nil {
		_, err = s.out.Write(append(b, '\n'))
	}
	return err
}

// scan reads a file of results, up to a line that is torn. f gets each line but the header, and
// where it ends.
func scan(r io.Reader, f func(l line, end int64) error) (h *header, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	end := int64(0)
	for n := 1; ; n++ {
		b, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return nil, err
		}
		end += int64(len(b))
		var l line
		if err := json.Unmarshal(bytes.TrimSpace(b), &l); err != nil || (h == nil) != (l.Plan != nil) {
			return nil, fmt.Errorf("line %d is not what `skep load` writes", n)
		}
		if l.Plan != nil {
			h = l.Plan
		}
		if err := f(l, end); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// maxMicros is the longest latency that is told apart: a day.
const maxMicros = 24 * 3600 * 1e6

func (s *store) add(c Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.last.RecordValue(min(maxMicros, max(1, c.Latency.Microseconds())))
	s.keep(s.write(line{Sample: &c}))
}

func (s *store) memory(m Memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(s.write(line{Memory: &m}))
	s.keep(s.out.Flush()) // every second: what a kill can lose is called again
}

// keep stops the run when results cannot be written. The mutex is held.
func (s *store) keep(err error) {
	if err != nil && s.bad == nil {
		s.bad = fmt.Errorf("writing results: %w", err)
		s.failed(s.bad)
	}
}

func (s *store) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

// lately returns the median and the 99th percentile of the latencies since it was last asked,
// and writes out what is buffered.
func (s *store) lately() (median, p99 time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(s.out.Flush())
	at := func(q float64) time.Duration { return time.Duration(s.last.ValueAtQuantile(q)) * time.Microsecond }
	median, p99 = at(50), at(99)
	s.last.Reset()
	return median, p99
}

func (s *store) close() error {
	return errors.Join(s.out.Flush(), s.file.Sync(), s.file.Close(), s.lock.Release())
}

// WriteDatabase makes the SQLite database of a directory of results anew.
func WriteDatabase(ctx context.Context, dir string) (err error) {
	f, err := os.Open(filepath.Join(dir, SamplesFile))
	if err != nil {
		return fmt.Errorf("reading results: %w", err)
	}
	defer f.Close()
	path := filepath.Join(dir, DatabaseFile)
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(tmp))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	if err = errors.Join(fill(ctx, db, f), db.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

func fill(ctx context.Context, db *sql.DB, r io.Reader) error {
	const schema = `CREATE TABLE plan (json TEXT);
CREATE TABLE calls (n INTEGER PRIMARY KEY, function INTEGER, at_us INTEGER, late_us INTEGER, latency_us INTEGER, took_us INTEGER, status INTEGER, start TEXT, lost TEXT);
CREATE TABLE memory (at_us INTEGER, instances INTEGER, mib REAL);`
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	insert, err := tx.PrepareContext(ctx, "INSERT OR REPLACE INTO calls VALUES (?,?,?,?,?,?,?,?,?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	h, err := scan(r, func(l line, _ int64) error {
		var err error
		switch {
		case l.Sample != nil:
			s := l.Sample
			_, err = insert.ExecContext(ctx, s.N, s.Function, s.At.Microseconds(), s.Late.Microseconds(), s.Latency.Microseconds(), s.Took.Microseconds(), s.Status, string(s.Start), s.Lost)
		case l.Memory != nil:
			_, err = tx.ExecContext(ctx, "INSERT INTO memory VALUES (?,?,?)", l.Memory.At.Microseconds(), l.Memory.Instances, l.Memory.MiB)
		}
		return err
	})
	if err != nil {
		return err
	}
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO plan VALUES (?)", string(b)); err != nil {
		return err
	}
	return tx.Commit()
}
