package load

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/load/trace"
)

func plan(t testing.TB, s Synthetic) *Plan {
	t.Helper()
	if s.Function == "" {
		s.Function = "f"
	}
	p, err := s.Plan()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlans(t *testing.T) {
	constant := plan(t, Synthetic{Source: "constant:rate=4", Duration: time.Second})
	for i, c := range constant.Calls {
		if c.At != time.Duration(i)*250*time.Millisecond {
			t.Errorf("call %d of a constant rate is at %v", i, c.At)
		}
	}
	for source, want := range map[string]float64{ // calls in 1000 s
		"constant:rate=4": 4000, "poisson:rate=20": 20000,
		"mmpp:low=1,high=50,calm=20s,burst=2s": 1000 * (20*1 + 2*50) / 22., "steps:from=5,by=5,every=250s": 250 * (5 + 10 + 15 + 20),
	} {
		s := Synthetic{Source: source, Duration: 1000 * time.Second, Seed: 7}
		p := plan(t, s)
		by := 6 * math.Sqrt(want)
		if strings.HasPrefix(source, "mmpp") {
			by = want / 4 // of some 45 bursts
		}
		if math.Abs(float64(len(p.Calls))-want) > by {
			t.Errorf("%s: %d calls, want %v", source, len(p.Calls), want)
		}
		if !slices.IsSortedFunc(p.Calls, func(a, b Call) int { return int(a.At - b.At) }) {
			t.Errorf("%s is not in order", source)
		}
		if p.Digest() != plan(t, s).Digest() {
			t.Errorf("%s: the same seed gives another plan", source)
		}
		if s.Seed++; !strings.HasPrefix(source, "constant") && p.Digest() == plan(t, s).Digest() {
			t.Errorf("%s: another seed gives the same plan", source)
		}
	}
	for _, bad := range []string{"", "uniform", "poisson:rate=x", "poisson:speed=1", "poisson:rate=-1", "poisson:rate=0", "constant:rate=1e6"} {
		if _, err := (Synthetic{Source: bad, Duration: time.Minute, Function: "f"}).Plan(); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestOfTrace(t *testing.T) {
	tr, err := trace.Generator{Functions: 30, Minutes: 10, Rate: 0.1, Seed: 1}.Make()
	if err != nil {
		t.Fatal(err)
	}
	p, err := OfTrace(tr, "made", 10, 3)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(p.Calls)) != tr.Calls() || p.Calls[len(p.Calls)-1].At > time.Minute || p.Functions[29] != "load-29" {
		t.Errorf("%d calls until %v", len(p.Calls), p.Calls[len(p.Calls)-1].At)
	}
}

func FuzzSource(f *testing.F) {
	f.Add("mmpp:low=1,high=50,calm=20s,burst=2s")
	f.Fuzz(func(t *testing.T, s string) {
		name, v, err := parseSource(s)
		if err != nil {
			return
		}
		for k, x := range v {
			if !(x >= 0 && x <= 1e6) {
				t.Fatalf("%s: %s is %v", name, k, x)
			}
		}
	})
}

// FuzzScan: whatever is in a file of results, reading it ends with an error or with what is there.
func FuzzScan(f *testing.F) {
	f.Add([]byte("{\"plan\":{\"source\":\"x\"}}\n{\"n\":1,\"latency_ns\":5}\n{\"memory\":{\"mib\":1}}\n{\"n\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		end := int64(0)
		_, err := scan(bytes.NewReader(b), func(_ line, e int64) error {
			if e <= end || e > int64(len(b)) {
				t.Fatalf("a line ends at %d after %d, of %d", e, end, len(b))
			}
			end = e
			return nil
		})
		_ = err
	})
}

// server answers by handle, and counts how often it was asked for each {ms}.
func server(t *testing.T, handle http.HandlerFunc) string {
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return s.URL + "/{function}?ms={ms}&mib={mib}"
}

// All calls are under way at once before the first is answered: a loader that waits for
// answers would never get there.
func TestOpenLoop(t *testing.T) {
	p := plan(t, Synthetic{Source: "constant:rate=1000", Duration: 40 * time.Millisecond, Took: 3 * time.Millisecond, MiB: 5})
	var under atomic.Int64
	all := make(chan struct{})
	url := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/f" || r.FormValue("ms") != "3" || r.FormValue("mib") != "5" || r.Host != "f.example" {
			t.Errorf("asked for %s of %s", r.URL, r.Host)
		}
		if under.Add(1) == int64(len(p.Calls)) {
			close(all)
		}
		<-all
		w.Header().Set(api.HeaderStart, "warm")
	})
	r, err := Run(t.Context(), Options{Plan: p, URL: url, Host: "{function}.example", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if r.Done != 40 || r.Lost != 0 || r.Cold != 0 || r.Untold != 0 {
		t.Errorf("%+v", r)
	}
}

// A server that takes one call at a time, and 20 ms for each: the k-th waits for k others,
// and its latency says so, though it was sent only then.
func TestLatencyCountsFromWhenItWasDue(t *testing.T) {
	p := plan(t, Synthetic{Source: "constant:rate=1000", Duration: 10 * time.Millisecond})
	url := server(t, func(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Millisecond) })
	dir := t.TempDir()
	if _, err := Run(t.Context(), Options{Plan: p, URL: url, Dir: dir, InFlight: 1}); err != nil {
		t.Fatal(err)
	}
	r, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.samples {
		if least := time.Duration(s.N+1)*20*time.Millisecond - s.At; s.Latency < least || s.Late < least-20*time.Millisecond {
			t.Errorf("call %d: %v after it was due, %v late; others alone take %v", s.N, s.Latency, s.Late, least)
		}
	}
	if r.Untold != 10 {
		t.Errorf("%d untold", r.Untold)
	}
}

// A run that is stopped, and whose last line is torn, is gone on with: every call is made,
// and those that were recorded are not made again.
func TestResume(t *testing.T) {
	p := plan(t, Synthetic{Source: "poisson:rate=500", Duration: 400 * time.Millisecond, Seed: 2})
	for i := range p.Calls {
		p.Calls[i].MiB = i // so that the server knows them
	}
	var mu sync.Mutex
	asked := map[string]int{}
	ctx, stop := context.WithCancel(t.Context())
	url := server(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if asked[r.FormValue("mib")]++; len(asked) == len(p.Calls)/3 {
			stop()
		}
	})
	dir := t.TempDir()
	if _, err := Run(ctx, Options{Plan: p, URL: url, Dir: dir}); err == nil {
		t.Fatal("it was stopped, and says nothing")
	}
	path := filepath.Join(dir, SamplesFile)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `{"n":7,"lat`)
	f.Close()
	recorded, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if recorded.Done == 0 || recorded.Done == len(p.Calls) {
		t.Fatalf("%d of %d were recorded", recorded.Done, len(p.Calls))
	}
	mu.Lock()
	clear(asked)
	mu.Unlock()
	r, err := Run(t.Context(), Options{Plan: p, URL: url, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if r.Done != len(p.Calls) || r.Lost != 0 {
		t.Errorf("%d of %d are over, %d lost", r.Done, len(p.Calls), r.Lost)
	}
	for _, s := range recorded.samples {
		if asked[fmt.Sprint(s.N)] > 0 {
			t.Errorf("call %d was recorded, and made again", s.N)
		}
	}
	clear(asked)
	if again, err := Run(t.Context(), Options{Plan: p, URL: url, Dir: dir}); err != nil || again.Done != r.Done || len(asked) != 0 {
		t.Errorf("a third run: %v, %d calls", err, len(asked))
	}
	other := plan(t, Synthetic{Source: "poisson:rate=500", Duration: 400 * time.Millisecond, Seed: 3})
	if _, err := Run(t.Context(), Options{Plan: other, URL: url, Dir: dir}); err == nil || !strings.Contains(err.Error(), "another plan") {
		t.Errorf("another plan: %v", err)
	}
}

// What is cold, lost and slow is counted by hand: of 100 calls the first is cold and takes
// 50 ms more, and every tenth from the sixth on is refused.
func TestReport(t *testing.T) {
	h := header{Source: "s", Calls: 100, URL: "u"}
	dir := t.TempDir()
	s := &store{has: make([]bool, 100), last: newHistogram().Histogram}
	var err error
	if s.file, err = os.Create(filepath.Join(dir, SamplesFile)); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(h); err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		c := Sample{N: n, At: time.Duration(n) * time.Second, Took: 10 * time.Millisecond, Latency: 12 * time.Millisecond, Status: 200, Start: api.StartWarm}
		if n == 0 {
			c.Latency, c.Start = 60*time.Millisecond, api.StartRestore
		}
		if n%10 == 6 {
			c.Status, c.Lost, c.Latency = 503, "status 503: full", time.Hour
		}
		s.add(c)
	}
	s.memory(Memory{Instances: 1, MiB: 100})
	s.memory(Memory{Instances: 3, MiB: 300})
	if err := s.out.Flush(); err != nil {
		t.Fatal(err)
	}
	s.file.Close()
	r, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want*0.002 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	if r.Done != 100 || r.Lost != 10 || r.Cold != 1 || r.Reasons["status 503: full"] != 10 {
		t.Errorf("%+v", r)
	}
	near("cold part", r.ColdPart, 1./90)
	near("median", r.Latency.P50, 12)
	near("max", r.Latency.Max, 60)
	near("slowdown, max", r.Slowdown.Max, 5) // 60 over 10 and the 2 that warm ones take beyond
	near("slowdown, median", r.Slowdown.P50, 1)
	near("memory", r.MemoryMean, 200)
	near("memory, peak", r.MemoryPeak, 300)
	if err := WriteDatabase(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, DatabaseFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var calls, lost, looks int
	if err := db.QueryRow("SELECT count(*), sum(lost <> ''), (SELECT count(*) FROM memory) FROM calls").Scan(&calls, &lost, &looks); err != nil || calls != 100 || lost != 10 || looks != 2 {
		t.Errorf("the database has %d calls, %d lost, %d looks at memory: %v", calls, lost, looks, err)
	}
	for _, c := range Compare(r, r) {
		if c.Significant || c.A != c.B {
			t.Errorf("a run differs from itself: %+v", c)
		}
	}
}

// Answers that are no success, and servers that break off, are lost calls with a reason.
func TestLost(t *testing.T) {
	p := plan(t, Synthetic{Source: "constant:rate=1000", Duration: 3 * time.Millisecond})
	var n atomic.Int64
	url := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 1:
			http.Error(w, "the queue is full", http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		}
	})
	r, err := Run(t.Context(), Options{Plan: p, URL: url, Dir: t.TempDir(), InFlight: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r.Done != 3 || r.Lost != 2 || r.Reasons["status 503: the queue is full"] != 1 {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{"", "ftp://x/", "{function}"} {
		if _, err := Run(t.Context(), Options{Plan: p, URL: bad, Dir: t.TempDir()}); err == nil {
			t.Errorf("%q was called", bad)
		}
	}
}

// TestSlowdownBesideIdle has six of ten warm calls wait for others: what they waited is their
// slowdown, and not what a warm call takes.
func TestSlowdownBesideIdle(t *testing.T) {
	var samples []Sample
	for n := range 100 {
		s := Sample{N: n, Took: 10 * time.Millisecond, Latency: 20 * time.Millisecond, Status: 200, Start: api.StartWarm}
		if n%10 < 6 {
			s.Latency = 200 * time.Millisecond
		}
		samples = append(samples, s)
	}
	if r := Of(samples, nil); math.Abs(r.Slowdown.P99-10) > 0.02 {
		t.Errorf("a call that took ten times as long as an idle one has a slowdown of %v", r.Slowdown.P99)
	}
}
