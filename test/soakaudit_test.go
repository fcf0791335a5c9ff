package test

import (
	"cmp"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	_ "modernc.org/sqlite" // the driver
)

func blocks(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return 0
}

func (l *ledger) note(v any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(v)
}

// daemons counts the daemons since the beginning.
func (l *ledger) daemons() int {
	n, _ := l.restarts()
	return n + 1
}

// daemonSince is when the last of them was started.
func (l *ledger) daemonSince() time.Time {
	_, at := l.restarts()
	return at
}

func (l *ledger) restarts() (n int, last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last = l.began
	for _, b := range l.disturbances {
		if strings.HasSuffix(b.Event, "daemon") && !b.Ended.IsZero() {
			n, last = n+1, b.Ended
		}
	}
	return n, last
}

// record is what the audit wants to know of one.
type record struct {
	id, function, start, failure string
	status                       int
	policy                       sql.NullString
	total                        time.Duration
}

// audit compares the ledger with all records, when both are complete.
func (s *soak) audit() {
	recs, err := readRecords(filepath.Join(s.d.data(), "skep.db"))
	if err != nil {
		s.ledger.fault("reading all records: %v", err)
		return
	}
	s.records = recs
	l := s.ledger
	byID := map[string]*record{}
	for i := range recs {
		r := &recs[i]
		if byID[r.id] != nil {
			l.fault("two records have the id %s", r.id)
		}
		byID[r.id] = r
	}
	type sums struct{ unknown, sent, excused int }
	per := map[string]*sums{}
	of := func(function string) *sums {
		if per[function] == nil {
			per[function] = &sums{}
		}
		return per[function]
	}
	l.mu.Lock()
	calls := slices.Clone(l.calls)
	near := map[*call]bool{}
	for _, c := range calls {
		near[c] = l.nearKill(c)
	}
	l.mu.Unlock()
	for _, c := range calls {
		if c.ID == "" {
			if c.Sent {
				of(c.Function).sent++
			}
			if c.Excuse != "" || near[c] {
				of(c.Function).excused++
			}
			continue
		}
		r := byID[c.ID]
		delete(byID, c.ID)
		switch {
		case c.Outcome == wrong: // it was told of
		case r == nil && near[c]:
			s.lost++
		case r == nil:
			l.fault("answered and not recorded: %+v", *c)
		case c.Complete && (r.status != c.Status || c.Start != "" && r.start != c.Start || r.function != c.Function):
			l.fault("the record %+v is not of what the client saw: %+v", *r, *c)
		case c.Outcome == answered && r.failure != "":
			l.fault("the record %+v tells of a failure, the client had its answer: %+v", *r, *c)
		}
	}
	for _, r := range byID {
		of(r.function).unknown++
	}
	// Calls without an id, such as those of clients that left, cannot be told
	// apart; there are as many records as there were such calls.
	for function, n := range per {
		if n.unknown > n.sent+n.excused || n.unknown < n.sent-n.excused {
			l.fault("%s: %d records of calls whose clients had no answer; %d were sent, of which up to %d may have been lost with a daemon", function, n.unknown, n.sent, n.excused)
		}
	}
}

// readRecords reads the records of a daemon that has ended.
func readRecords(path string) (recs []record, err error) {
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query("SELECT id, function, start, failure, status, json_extract(memory, '$.policy'), total_us FROM invocations")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r record
		var us int64
		if err := rows.Scan(&r.id, &r.function, &r.start, &r.failure, &r.status, &r.policy, &us); err != nil {
			return nil, err
		}
		r.total = time.Duration(us) * time.Microsecond
		recs = append(recs, r)
	}
	return recs, rows.Err()
}

// report prints the figures, and fails the test for what was wrong.
func (s *soak) report() {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	outcomes := []string{answered, refused, left, overload, disturbed, wrong}
	kinds := map[string]map[string]int{}
	sums := map[string]int{}
	for _, c := range l.calls {
		if kinds[c.Kind] == nil {
			kinds[c.Kind] = map[string]int{}
		}
		kinds[c.Kind][c.Outcome]++
		sums[c.Outcome]++
	}
	fmt.Fprintf(w, "CALLS\t%s\n", strings.Join(outcomes, "\t"))
	line := func(name string, counts map[string]int) {
		fmt.Fprint(w, name)
		for _, o := range outcomes {
			fmt.Fprintf(w, "\t%d", counts[o])
		}
		fmt.Fprintln(w)
	}
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		line(k, kinds[k])
	}
	line("all", sums)

	events := map[string]int{}
	for _, d := range l.disturbances {
		events[d.Event]++
	}
	fmt.Fprintf(w, "\nDISTURBANCES\tcount\n")
	for _, e := range slices.Sorted(maps.Keys(events)) {
		fmt.Fprintf(w, "%s\t%d\n", e, events[e])
	}

	starts := map[string][]time.Duration{}
	failures := map[string]int{}
	for _, r := range s.records {
		name := r.start
		if r.policy.Valid && name == "restore" {
			name += " " + r.policy.String
		}
		starts[cmp.Or(name, "none")] = append(starts[cmp.Or(name, "none")], r.total)
		failures[cmp.Or(r.failure, "none")]++
	}
	fmt.Fprintf(w, "\nRECORDS BY START\tcount\tmedian ms\tp99 ms\n")
	for _, name := range slices.Sorted(maps.Keys(starts)) {
		ts := starts[name]
		slices.Sort(ts)
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\n", name, len(ts), ms(ts[len(ts)/2]), ms(ts[len(ts)*99/100]))
	}
	fmt.Fprintf(w, "\nRECORDS BY FAILURE\tcount\n")
	for _, name := range slices.Sorted(maps.Keys(failures)) {
		fmt.Fprintf(w, "%s\t%d\n", name, failures[name])
	}
	fmt.Fprintf(w, "\nanswered in the moment before a SIGKILL, and not recorded: %d\n", s.lost)

	fmt.Fprintf(w, "\nLEFT WHEN QUIET\tdaemon\tuptime\tfds\tgoroutines\tRSS MiB\theap MiB\tprocesses\tnetns\trun dirs\tmem dirs\tcgroups\tsnapshots\timages\tdata MiB\n")
	for _, k := range s.looks {
		fmt.Fprintf(w, "%s\t%d\t%v\t%d\t%d\t%.0f\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.0f\n", k.When, k.Daemon, k.Uptime, k.Descriptors, k.Goroutines,
			k.ResidentMiB, k.HeapMiB, k.Processes, k.Namespaces, k.RunDirs, k.MemDirs, k.Cgroups, k.Snapshots, k.Images, k.DataMiB)
	}
	w.Flush()
	s.t.Logf("%d calls with seed %d\n%s", len(l.calls), s.seed, b.String())
	for _, text := range l.wrongs {
		s.t.Errorf("wrong: %s", text)
	}
}
