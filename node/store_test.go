package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestDatabaseFromTheFutureIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep.db")
	d, err := openDatabase(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.main.ExecContext(t.Context(), "PRAGMA user_version = 999"); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := openDatabase(t.Context(), path); err == nil || !strings.Contains(err.Error(), "newer skep") {
		t.Errorf("%v, want it refused", err)
	}
}

// A database of the first version gets what the next one added.
func TestMigrationFromTheFirstVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep.db")
	db, err := openSQLite(path, "FULL", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), migrations[0]+"PRAGMA user_version = 1"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := openDatabase(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var plan string
	var skip any
	row := d.main.QueryRowContext(t.Context(), "EXPLAIN QUERY PLAN SELECT * FROM invocations WHERE id = 'x'")
	if err := row.Scan(&skip, &skip, &skip, &plan); err != nil || !strings.Contains(plan, "invocations_by_id") {
		t.Errorf("finding a record: %q, %v", plan, err)
	}
}

func TestRecords(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, func(c *Config) { c.KeepRecords = 5 })
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var phases api.Phases
	for i := range 8 {
		phases.Queue, phases.Stream, phases.Total = time.Duration(i)*time.Microsecond, time.Millisecond, time.Second
		n.Record(api.Invocation{ID: fmt.Sprint(i), Function: []string{"a", "b"}[i%2], Time: base.Add(time.Duration(i) * time.Second),
			Start: api.StartBoot, Status: 500 + i, Failure: api.FailureFunction, Error: "x", BytesIn: 1, BytesOut: 2, Phases: phases,
			Memory: &api.MemoryStats{Policy: "reap", Faults: int64(i)}})
	}
	if err := n.Close(t.Context()); err != nil { // flushes
		t.Fatal(err)
	}
	n.Record(api.Invocation{ID: "late"}) // must do nothing
	n = w.open(t, func(c *Config) { c.KeepRecords = 5 })
	for _, tc := range []struct {
		filter InvocationFilter
		want   string
	}{
		{InvocationFilter{Limit: -1, Function: "a"}, "4 6"},
		{InvocationFilter{Limit: 2}, "6 7"},
		{InvocationFilter{Since: base.Add(6 * time.Second)}, "6 7"},
		{InvocationFilter{Function: "none"}, ""},
		{InvocationFilter{ID: "5"}, "5"},
		{InvocationFilter{ID: "5", Function: "a"}, ""},
		{InvocationFilter{ID: "0"}, ""}, // no longer kept
	} {
		n.rec.trim()
		recs, err := n.Invocations(t.Context(), tc.filter)
		var ids []string
		for _, r := range recs {
			ids = append(ids, r.ID)
		}
		if got := strings.Join(ids, " "); err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v; want %q", tc.filter, got, err, tc.want)
		}
	}
	recs, _ := n.Invocations(t.Context(), InvocationFilter{Limit: 1})
	phases.Queue = 7 * time.Microsecond
	if r := recs[0]; r.Phases != phases || r.Memory.Faults != 7 || r.Status != 507 || !r.Time.Equal(base.Add(7*time.Second)) || r.Error != "x" {
		t.Errorf("record %+v", r)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.bootTime = 0
	n := w.open(t, func(c *Config) { c.LogBytes = 20000 })
	deploy(t, n, hello(nil))
	wr := n.logs.writer("hello", "i-1")
	for i := range 5 {
		wr.write("stdout", "", fmt.Appendf(nil, "line %d", i))
	}
	var out bytes.Buffer
	if err := n.Logs(t.Context(), api.LogQuery{Function: "hello", Tail: 2}, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], " i-1 stdout - line 3") || !strings.HasSuffix(lines[1], " i-1 stdout - line 4") {
		t.Errorf("last two lines %q", lines)
	}
	if err := n.Logs(t.Context(), api.LogQuery{Function: "none"}, &out); err == nil {
		t.Error("the log of no function")
	}

	// A follower gets every line, across rotations, and the disk stays bounded.
	var followed testenv.Output
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- n.Logs(ctx, api.LogQuery{Function: "hello", Follow: true}, &followed) }()
	const count = 2000
	for i := range count {
		wr.write("stderr", "r7", fmt.Appendf(nil, "more %04d", i))
		if i%20 == 0 { // let it keep up: two rotations at once may be missed
			deadline := time.Now().Add(5 * time.Second)
			for !strings.Contains(followed.String(), fmt.Sprintf("more %04d\n", i)) && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(followed.String(), fmt.Sprintf("more %04d\n", count-1)) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if got := strings.Count(followed.String(), "\n"); got != count+5 {
		t.Errorf("followed %d lines of %d", got, count+5)
	}
	var size int64
	for _, name := range []string{"log", "log.1"} {
		info, err := os.Stat(filepath.Join(w.dir, "logs", "hello", name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 20000 {
		t.Errorf("the log has %d bytes on disk, want at most 20000", size)
	}
	wr.write("stdout", "", bytes.Repeat([]byte("x"), 3*maxLogLine)) // cut, not refused
	wr.close()
	wr.close()
}

func TestLogFilter(t *testing.T) {
	lines := []string{
		"2026-01-01T00:00:00.000000Z i-1 stdout r1 a\n",
		"2026-01-01T00:00:01.000000Z i-2 stderr - b c\n",
		"2026-01-01T00:00:02.000000Z i-1 stdout r2 d\n",
		"2026-01-01T00:00:02.500000Z i-11 stdout r22 e\n",
	}
	for _, tc := range []struct {
		q    api.LogQuery
		want string // texts
	}{
		{api.LogQuery{}, "a b d e"},
		{api.LogQuery{Tail: 2}, "d e"},
		{api.LogQuery{Tail: 9}, "a b d e"},
		{api.LogQuery{Instance: "i-1"}, "a d"},
		{api.LogQuery{Instance: "i-1", Tail: 1}, "d"},
		{api.LogQuery{Invocation: "r2"}, "d"},
		{api.LogQuery{Since: time.Date(2026, 1, 1, 1, 0, 1, 0, time.FixedZone("", 3600))}, "b d e"},
		{api.LogQuery{Since: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}, ""},
	} {
		var out bytes.Buffer
		f := newLogFilter(&out, tc.q)
		text := strings.Join(lines, "")
		for len(text) > 0 { // in pieces that end anywhere
			k := min(7, len(text))
			if _, err := f.Write([]byte(text[:k])); err != nil {
				t.Fatal(err)
			}
			text = text[k:]
		}
		if err := f.flush(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Fields(line)[4])
		}
		if g := strings.Join(got, " "); g != tc.want {
			t.Errorf("%+v: %q, want %q", tc.q, g, tc.want)
		}
	}
}

// Lines carry the invocation that the instance was given last, where it takes
// one at a time, and none where that cannot be known.
func TestLinesNameTheirInvocation(t *testing.T) {
	for concurrency, want := range map[int]string{1: "req-1", 2: "-"} {
		w := newWorld(t)
		w.bootTime, w.restoreTime = 0, 0
		n := w.open(t, nil)
		deploy(t, n, hello(func(f *api.Function) { f.Concurrency = concurrency }))
		l := acquire(t, n, AcquireOptions{Invocation: "req-1"})
		w.mu.Lock()
		agent := w.machines[l.Instance()].agent
		w.mu.Unlock()
		agent.logs("stdout", []byte("it is so"))
		l.Release(okRecord())
		var out bytes.Buffer
		if err := n.Logs(t.Context(), api.LogQuery{Function: "hello", Tail: 1}, &out); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(out.String(), " stdout "+want+" it is so\n") {
			t.Errorf("concurrency %d: %q", concurrency, out.String())
		}
	}
}

func TestThousandFunctions(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	img, _ := fakeImages{}.Get("sha256:x")
	var db *database
	for i := range 1000 {
		fn := hello(func(f *api.Function) { f.Name = fmt.Sprint("f", i) }).WithDefaults()
		d, err := newDeployment(fn, img)
		if err != nil {
			t.Fatal(err)
		}
		if db == nil { // the same, but for the syncing
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			main, err := openSQLite(filepath.Join(w.dir, "skep.db"), "OFF", 1)
			if err != nil {
				t.Fatal(err)
			}
			db = &database{main: main}
		}
		if err := db.putFunction(t.Context(), d, putOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.close(); err != nil {
		t.Fatal(err)
	}
	n = w.open(t, nil)
	if got := len(n.Functions()); got != 1000 {
		t.Errorf("%d functions", got)
	}
	if len(n.Instances("")) != 0 {
		t.Error("instances of functions that nobody asked for")
	}
}

func BenchmarkWarm(b *testing.B) {
	w := newWorld(b)
	w.bootTime, w.restoreTime = 0, 0
	n := w.open(b, nil)
	deploy(b, n, hello(nil))
	for b.Loop() {
		l, err := n.Acquire(b.Context(), "hello", AcquireOptions{})
		if err != nil {
			b.Fatal(err)
		}
		l.Release(api.Invocation{Status: 200, Time: time.Now()})
	}
}

// Who keeps no records has none, old ones included, and still has the counts.
func TestNoRecordsAreKept(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	n.Record(api.Invocation{ID: "old"})
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n = w.open(t, func(c *Config) { c.KeepRecords = -1 })
	n.Record(api.Invocation{ID: "new"})
	if err := n.rec.close(); err != nil { // flushes
		t.Fatal(err)
	}
	recs, err := n.Invocations(t.Context(), InvocationFilter{})
	if err != nil || len(recs) != 0 {
		t.Errorf("kept %+v, %v", recs, err)
	}
	if len(w.records) != 2 {
		t.Errorf("%d records were counted, want 2", len(w.records))
	}
}
