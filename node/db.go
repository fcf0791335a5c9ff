package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
)

// database is skep.db: functions, what must be cleaned up, and the invocations'
// records. Functions are synced to disk before a call returns. Records go
// through a connection of their own that syncs at checkpoints only: they
// survive the daemon's death at any moment, and a power failure but for the
// last of them.
type database struct {
	main    *sql.DB
	records *sql.DB
}

// migrations take the schema from the version that is their index to the next.
// One that was released is never changed.
var migrations = []string{`
CREATE TABLE functions (
	name     TEXT PRIMARY KEY,
	function TEXT NOT NULL, -- api.Function as JSON
	image    TEXT NOT NULL  -- image.Image as JSON
);
CREATE TABLE doomed_snapshots ( -- to be removed by the next start
	id TEXT PRIMARY KEY
);
CREATE TABLE invocations (
	seq       INTEGER PRIMARY KEY AUTOINCREMENT,
	id        TEXT NOT NULL,
	function  TEXT NOT NULL,
	instance  TEXT NOT NULL,
	snapshot  TEXT NOT NULL,
	start     TEXT NOT NULL,
	time_ns   INTEGER NOT NULL, -- Unix time of arrival
	status    INTEGER NOT NULL,
	error     TEXT NOT NULL,
	bytes_in  INTEGER NOT NULL,
	bytes_out INTEGER NOT NULL,
	queue_us INTEGER NOT NULL, slot_us INTEGER NOT NULL, spawn_us INTEGER NOT NULL, load_us INTEGER NOT NULL,
	install_us INTEGER NOT NULL, resume_us INTEGER NOT NULL, boot_us INTEGER NOT NULL, clone_us INTEGER NOT NULL,
	init_us INTEGER NOT NULL, connect_us INTEGER NOT NULL, process_us INTEGER NOT NULL, stream_us INTEGER NOT NULL,
	total_us INTEGER NOT NULL,
	memory    TEXT -- api.MemoryStats as JSON
);
CREATE INDEX invocations_by_function ON invocations (function, time_ns);
CREATE INDEX invocations_by_time ON invocations (time_ns);
`, `
CREATE INDEX invocations_by_id ON invocations (id);
`, `
ALTER TABLE invocations ADD COLUMN failure TEXT NOT NULL DEFAULT '';
`, `
CREATE TABLE revisions ( -- of functions, the one in force among them
	name     TEXT NOT NULL,
	number   INTEGER NOT NULL,
	change   TEXT NOT NULL, -- what made it
	function TEXT NOT NULL, -- api.Function as JSON
	image    TEXT NOT NULL, -- image.Image as JSON
	PRIMARY KEY (name, number)
) WITHOUT ROWID;
INSERT INTO revisions (name, number, change, function, image) SELECT name, 1, 'deploy', function, image FROM functions;
`, `
ALTER TABLE invocations ADD COLUMN trace TEXT NOT NULL DEFAULT '';
ALTER TABLE invocations ADD COLUMN container TEXT; -- api.Container as JSON; of a container's start
`, `
ALTER TABLE invocations ADD COLUMN disk TEXT; -- api.RemoteDisk as JSON; of a start before all of the root disk was here
`}

func openDatabase(ctx context.Context, path string) (*database, error) {
	d := &database{}
	err := ownDatabase(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if d.main, err = openSQLite(path, "FULL", 2); err == nil {
		if d.records, err = openSQLite(path, "NORMAL", 1); err == nil {
			err = migrate(ctx, d.main)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), d.close())
	}
	return d, nil
}

func openSQLite(path, synchronous string, conns int) (*sql.DB, error) {
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(" + synchronous + ")", "cache_size(-2000)"}}
	q.Set("_txlock", "immediate")
	db, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	return inTx(ctx, db, func(tx *sql.Tx) error {
		var v int
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&v); err != nil {
			return err
		}
		if v > len(migrations) {
			return fmt.Errorf("its schema is version %d, this skep knows %d: it was written by a newer skep, use that one", v, len(migrations))
		}
		for ; v < len(migrations); v++ {
			if _, err := tx.ExecContext(ctx, migrations[v]); err != nil {
				return fmt.Errorf("migrating its schema from version %d: %w", v, err)
			}
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", v))
		return err
	})
}

func inTx(ctx context.Context, db *sql.DB, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (d *database) close() error {
	var err error
	for _, db := range []*sql.DB{d.records, d.main} {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}
	return err
}

const cleanupTimeout = 10 * time.Second

// doom notes that a snapshot is to be removed by the next start, unless it is
// spared before.
func (d *database) doom(ctx context.Context, id string) error {
	_, err := d.main.ExecContext(ctx, "INSERT OR IGNORE INTO doomed_snapshots (id) VALUES (?)", id)
	return describeDB("noting a snapshot in the making", err)
}

// spare takes that back. It is clean-up: it has a deadline of its own.
func (d *database) spare(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	_, err := d.main.ExecContext(ctx, "DELETE FROM doomed_snapshots WHERE id = ?", id)
	return describeDB("noting the end of a snapshot", err)
}

func (d *database) doomed(ctx context.Context) ([]string, error) {
	rows, err := d.main.QueryContext(ctx, "SELECT id FROM doomed_snapshots")
	if err != nil {
		return nil, describeDB("reading doomed snapshots", err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, describeDB("reading doomed snapshots", err)
		}
		ids = append(ids, id)
	}
	return ids, describeDB("reading doomed snapshots", rows.Err())
}

// putOptions say what goes with a deployment that is stored.
type putOptions struct {
	change    string   // what made it
	snapshot  string   // that is no longer doomed, "" for none
	doomed    []string // snapshots that it supersedes
	revisions int      // how many are kept; 0: all
}

// putFunction stores a deployment and its revision, keeps its snapshot, and
// dooms those that it supersedes: all or nothing.
func (d *database) putFunction(ctx context.Context, dep *deployment, o putOptions) error {
	fn, err := json.Marshal(dep.fn)
	if err != nil {
		return err
	}
	img, err := json.Marshal(dep.image)
	if err != nil {
		return err
	}
	err = inTx(ctx, d.main, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO functions (name, function, image) VALUES (?, ?, ?)", dep.fn.Name, fn, img)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO revisions (name, number, change, function, image) VALUES (?, ?, ?, ?, ?)",
			dep.fn.Name, dep.fn.Revision, o.change, fn, img)
		if err != nil {
			return err
		}
		if o.revisions > 0 {
			_, err := tx.ExecContext(ctx, "DELETE FROM revisions WHERE name = ? AND number <= ?", dep.fn.Name, dep.fn.Revision-o.revisions)
			if err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM doomed_snapshots WHERE id = ?", o.snapshot); err != nil {
			return err
		}
		return doomAll(ctx, tx, o.doomed)
	})
	return describeDB("storing function "+dep.fn.Name, err)
}

func (d *database) deleteFunction(ctx context.Context, name string, doomed []string) error {
	err := inTx(ctx, d.main, func(tx *sql.Tx) error {
		for _, table := range []string{"functions", "revisions"} {
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE name = ?", name); err != nil {
				return err
			}
		}
		return doomAll(ctx, tx, doomed)
	})
	return describeDB("deleting function "+name, err)
}

func doomAll(ctx context.Context, tx *sql.Tx, ids []string) error {
	for _, id := range ids {
		if _, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO doomed_snapshots (id) VALUES (?)", id); err != nil {
			return err
		}
	}
	return nil
}

func (d *database) functions(ctx context.Context) ([]*deployment, error) {
	rows, err := d.main.QueryContext(ctx, "SELECT name, function, image FROM functions")
	if err != nil {
		return nil, describeDB("reading functions", err)
	}
	defer rows.Close()
	var out []*deployment
	for rows.Next() {
		var name string
		var fn, img []byte
		if err := rows.Scan(&name, &fn, &img); err != nil {
			return nil, describeDB("reading functions", err)
		}
		dep, err := decodeDeployment(fn, img)
		if err != nil {
			return nil, fmt.Errorf("reading function %q: %w", name, err)
		}
		out = append(out, dep)
	}
	return out, describeDB("reading functions", rows.Err())
}

func decodeDeployment(fn, img []byte) (*deployment, error) {
	var f api.Function
	if err := json.Unmarshal(fn, &f); err != nil {
		return nil, err
	}
	var i image.Image
	if err := json.Unmarshal(img, &i); err != nil {
		return nil, err
	}
	f.Revision = max(f.Revision, 1) // those of before there were any
	return newDeployment(f.WithDefaults(), i)
}

// revision is a row of the table.
type revision struct {
	dep    *deployment
	change string
}

// lastFunctions names the functions that were invoked last, the last first; behind them those
// that never were, the newest first.
func (d *database) lastFunctions(ctx context.Context, most int) (names []string, err error) {
	rows, err := d.main.QueryContext(ctx, `SELECT name FROM functions
		ORDER BY coalesce((SELECT max(time_ns) FROM invocations WHERE function = name), 0) DESC, rowid DESC LIMIT ?`, most)
	if err != nil {
		return nil, fmt.Errorf("reading which functions were invoked last: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("reading which functions were invoked last: %w", err)
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

// revisions reads a function's, newest first. One that this version cannot read
// is left out: it must not be in the way of the others.
func (d *database) revisions(ctx context.Context, name string) ([]revision, error) {
	rows, err := d.main.QueryContext(ctx, "SELECT change, function, image FROM revisions WHERE name = ? ORDER BY number DESC", name)
	if err != nil {
		return nil, describeDB("reading revisions of "+name, err)
	}
	defer rows.Close()
	var out []revision
	for rows.Next() {
		var r revision
		var fn, img []byte
		if err := rows.Scan(&r.change, &fn, &img); err != nil {
			return nil, describeDB("reading revisions of "+name, err)
		}
		if r.dep, err = decodeDeployment(fn, img); err == nil {
			out = append(out, r)
		}
	}
	return out, describeDB("reading revisions of "+name, rows.Err())
}

// revisionImages lists the images of all kept revisions: name, digest.
func (d *database) revisionImages(ctx context.Context) (out [][2]string, err error) {
	rows, err := d.main.QueryContext(ctx, "SELECT DISTINCT name, json_extract(image, '$.digest') FROM revisions ORDER BY name")
	if err != nil {
		return nil, describeDB("reading the images of revisions", err)
	}
	defer rows.Close()
	for rows.Next() {
		var pair [2]string
		if err := rows.Scan(&pair[0], &pair[1]); err != nil {
			return nil, describeDB("reading the images of revisions", err)
		}
		out = append(out, pair)
	}
	return out, describeDB("reading the images of revisions", rows.Err())
}

func describeDB(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
