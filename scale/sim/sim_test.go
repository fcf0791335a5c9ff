package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/scale"
)

// secondStarts are costs by which every start takes a second and nothing else costs.
func secondStarts() *Costs {
	return &Costs{Starts: map[string]Distribution{"restore": {1, 1}}}
}

// calls is a trace of invocations: function, second at which it comes, seconds that it takes.
func calls(t testing.TB, lines ...[3]float64) *trace.Trace {
	var b strings.Builder
	b.WriteString("app,func,end_timestamp,duration\n")
	for _, l := range lines {
		fmt.Fprintf(&b, "a,f%v,%v,%v\n", l[0], l[1]+l[2], l[2])
	}
	tr, err := trace.ReadAzure2021(strings.NewReader(b.String()), 100)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func run(t testing.TB, tr *trace.Trace, policy string, change func(*Config)) *Result {
	t.Helper()
	spec, err := scale.Parse(policy)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Trace: tr, Policy: spec, Start: "restore", Costs: secondStarts(), Seed: 1}
	if change != nil {
		change(&c)
	}
	r, err := Run(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// One function of 100 MiB: requests of a second at 0, 30 and 300 s, kept for a minute. The
// first and the last wait a second for a start. An instance is there from 0 to 1+1 s, idle
// until 30, serves until 31, idle until 91; and from 300 to 302, and idle to the end at 360.
func TestByHand(t *testing.T) {
	tr := calls(t, [3]float64{1, 0, 1}, [3]float64{1, 30, 1}, [3]float64{1, 300, 1})
	r := run(t, tr, "fixed:keep-alive=60s", nil)
	if r.Calls != 3 || r.Cold != 2 || r.Starts != 2 || r.Lost != 0 || r.Unused != 0 {
		t.Errorf("%+v", r)
	}
	if want := 100 * (91 + 60) / 360.; math.Abs(r.Memory.MeanMiB-want) > 1e-6 {
		t.Errorf("%v MiB in the mean, want %v", r.Memory.MeanMiB, want)
	}
	if want := (28 + 60 + 58) / 151.; math.Abs(r.Memory.IdlePart-want) > 1e-6 {
		t.Errorf("%v of it idle, want %v", r.Memory.IdlePart, want)
	}
	if math.Abs(r.Slowdown.Max-2) > 0.01 || r.Slowdown.P50 < 1.99 || math.Abs(r.Wait.Max-1) > 0.001 {
		t.Errorf("slowdown %+v, wait %+v: want 2 and 1 s, of two of three", r.Slowdown, r.Wait)
	}
	until := func(d time.Duration) *Result {
		return run(t, tr, "fixed:keep-alive=60s", func(c *Config) { c.Until = d })
	}
	if r := until(45 * time.Second); math.Abs(r.Memory.MeanMiB-100) > 1e-6 || r.Length != 45*time.Second || r.Calls != 3 {
		t.Errorf("until 45 s: %v MiB in the mean, %v, %d calls; want 100", r.Memory.MeanMiB, r.Length, r.Calls)
	}
	if r, want := until(302*time.Second), 100*(91+2)/302.; math.Abs(r.Memory.MeanMiB-want) > 1e-6 {
		t.Errorf("until 302 s: %v MiB in the mean, want %v", r.Memory.MeanMiB, want)
	}
	r = run(t, tr, "none", nil)
	if r.Cold != 3 || math.Abs(r.Memory.MeanMiB-100*6/360.) > 1e-6 {
		t.Errorf("none: %+v", r)
	}
}

// A request every 20 minutes and a half: kept for ten minutes it is always cold; a
// histogram learns to start ahead; a price that pays for 20 minutes keeps it.
func TestPeriodic(t *testing.T) {
	var lines [][3]float64
	for i := range 100 {
		lines = append(lines, [3]float64{1, float64(i) * 1230, 1})
	}
	tr := calls(t, lines...)
	for policy, want := range map[string]struct{ cold, ahead int64 }{
		"fixed:keep-alive=10m":    {100, 0},
		"fixed:keep-alive=25m":    {1, 0},
		"hybrid":                  {1, 98},
		"greedy-dual":             {1, 0},
		"break-even:price=200000": {1, 0}, // a second is worth 100 MiB for 2,000 s
		"break-even:price=50000":  {100, 0},
		"kpa":                     {100, 0},
		"none":                    {100, 0},
	} {
		r := run(t, tr, policy, nil)
		if r.Cold != want.cold || r.Lost != 0 || policy == "hybrid" && (r.Ahead < want.ahead || r.Unused > 1) {
			t.Errorf("%s: %d cold, %d ahead, %d unused, %d lost; want %d cold, %d ahead", policy, r.Cold, r.Ahead, r.Unused, r.Lost, want.cold, want.ahead)
		}
	}
}

// Every policy on every cluster: each request is answered, none is answered twice, no
// node holds more than it has, and it is the same each time.
func TestAllPoliciesAnswerAll(t *testing.T) {
	tr, err := trace.Generator{Functions: 300, Minutes: 12, Seed: 3}.Make()
	if err != nil {
		t.Fatal(err)
	}
	for _, policy := range scale.Names() {
		for _, nodes := range []struct {
			n         int
			mib       int64
			placement Placement
			per       int
		}{{1, 0, Spread, 1}, {4, 256 << 10, Pack, 1}, {3, 256 << 10, SnapshotAware, 4}} {
			set := func(c *Config) {
				c.Nodes, c.NodeMiB, c.Placement, c.Concurrency, c.Utilization = nodes.n, nodes.mib, nodes.placement, nodes.per, 0.6
				c.Costs.Fetch = Distribution{0.1, 0.2}
				c.Costs.Warm = Distribution{0.001, 0.002}
				c.QueueTimeout = time.Hour
			}
			a := run(t, tr, policy, set)
			if a.Lost != 0 || a.Calls != tr.Calls() {
				t.Errorf("%s on %+v: %d of %d calls, %d lost", policy, nodes, a.Calls, tr.Calls(), a.Lost)
			}
			if nodes.mib > 0 && a.Memory.PeakMiB > float64(nodes.mib)*float64(nodes.n) {
				t.Errorf("%s on %+v: %v MiB at most", policy, nodes, a.Memory.PeakMiB)
			}
			if a.Cold > a.Starts {
				t.Errorf("%s: %d cold calls of %d starts", policy, a.Cold, a.Starts)
			}
			b := run(t, tr, policy, set)
			a.Took, b.Took = 0, 0
			if !reflect.DeepEqual(a, b) {
				t.Errorf("%s: twice the same is\n%+v\n%+v", policy, a, b)
			}
		}
	}
}

// Four requests at an instance for four: with a target of half the third has another started,
// though it is served at once.
func TestTargetUtilization(t *testing.T) {
	tr := calls(t, [3]float64{1, 0, 30}, [3]float64{1, 10, 10}, [3]float64{1, 12, 10}, [3]float64{1, 14, 10})
	at := func(utilization float64) *Result {
		return run(t, tr, "fixed:keep-alive=10s", func(c *Config) { c.Concurrency, c.Utilization = 4, utilization })
	}
	if r := at(1); r.Starts != 1 || r.Cold != 1 {
		t.Errorf("all of the concurrency: %d starts", r.Starts)
	}
	if r := at(0.5); r.Starts != 2 || r.Cold != 1 || r.Lost != 0 {
		t.Errorf("half of it: %d starts, %d cold", r.Starts, r.Cold)
	}
}

// Two functions of 100 MiB on a node of 150: the second's start ends the first's idle
// instance, and one that serves is waited for.
func TestMemoryIsShared(t *testing.T) {
	tr := calls(t, [3]float64{1, 0, 1}, [3]float64{2, 10, 20}, [3]float64{1, 15, 1})
	r := run(t, tr, "fixed:keep-alive=10m", func(c *Config) { c.NodeMiB = 150 })
	// At 15 s the first function waits until 31 s, when the second's request is over, and
	// then a second for its start.
	if r.Cold != 3 || r.Evicted != 2 || r.Lost != 0 || math.Abs(r.Wait.Max-17) > 0.05 || r.Memory.PeakMiB != 100 {
		t.Errorf("%+v", r)
	}
	r = run(t, tr, "fixed:keep-alive=10m", func(c *Config) { c.NodeMiB, c.QueueTimeout = 150, 10*time.Second })
	if r.Lost != 1 {
		t.Errorf("%d lost after 10 s, want 1", r.Lost)
	}
	r = run(t, tr, "fixed:keep-alive=10m", func(c *Config) { c.NodeMiB = 50 })
	if r.Lost != 3 {
		t.Errorf("%d lost where nothing fits, want 3", r.Lost)
	}
}

// Under greedy-dual the function that is used more stays, though it was used longer ago.
func TestGreedyDualEvicts(t *testing.T) {
	lines := [][3]float64{{2, 100, 1}, {3, 110, 1}, {1, 120, 1}}
	for i := range 10 {
		lines = append(lines, [3]float64{1, float64(i) * 5, 1})
	}
	slices.SortFunc(lines, func(a, b [3]float64) int { return int(a[1] - b[1]) })
	tr := calls(t, lines...)
	two := func(c *Config) { c.NodeMiB = 200 }
	if r := run(t, tr, "greedy-dual", two); r.Cold != 3 {
		t.Errorf("greedy-dual: %d cold, want one of each", r.Cold)
	}
	if r := run(t, tr, "fixed:keep-alive=10m", two); r.Cold != 4 {
		t.Errorf("least recently used: %d cold, want two of the first", r.Cold)
	}
}

func TestPlacement(t *testing.T) {
	// Three functions at once, then each again after its instance has gone.
	tr := calls(t, [3]float64{1, 0, 1}, [3]float64{2, 0.1, 1}, [3]float64{3, 0.2, 1}, [3]float64{1, 30, 1}, [3]float64{2, 30.1, 1}, [3]float64{3, 30.2, 1})
	fetches := func(p Placement) int64 {
		return run(t, tr, "none", func(c *Config) {
			c.Nodes, c.NodeMiB, c.Placement = 3, 1000, p
			c.Costs.Fetch = Distribution{0.5, 0.5}
		}).Fetches
	}
	if n := fetches(SnapshotAware); n != 3 {
		t.Errorf("snapshot-aware: %d fetches, want one for each function", n)
	}
	if n := fetches(Pack); n != 3 {
		t.Errorf("pack: %d fetches, want all on one node", n)
	}
}

// TestChunkAware: of three functions two are of one application, so on one base, of which
// the second's snapshot has 80% in common. All three start at once on three nodes.
func TestChunkAware(t *testing.T) {
	tr := calls(t, [3]float64{1, 0, 1}, [3]float64{2, 0.1, 1}, [3]float64{3, 0.2, 1})
	for i, app := range []string{"a", "a", "b"} {
		tr.Functions[i].App = app
	}
	if baseOf(&tr.Functions[0], 0, 64) != baseOf(&tr.Functions[1], 1, 64) || baseOf(&tr.Functions[0], 0, 64) == baseOf(&tr.Functions[2], 2, 64) {
		t.Fatal("the two of an application are not on one base of their own")
	}
	for placement, want := range map[Placement]float64{Spread: 3, SnapshotAware: 3, ChunkAware: 2.2} {
		r := run(t, tr, "none", func(c *Config) {
			c.Nodes, c.NodeMiB, c.Placement, c.Bases = 3, 1000, placement, 64
			c.Costs.Fetch, c.Costs.FetchShared = Distribution{0.5, 0.5}, 0.8
		})
		if r.Fetches != 3 || math.Abs(r.Fetched-want) > 1e-9 {
			t.Errorf("%s: %d fetches of %v snapshots, want 3 of %v", placement, r.Fetches, r.Fetched, want)
		}
	}
	// What is not fetched takes no time: of a second the second function waits for a fifth.
	tr = calls(t, [3]float64{1, 0, 1}, [3]float64{2, 0.1, 1})
	r := run(t, tr, "none", func(c *Config) {
		c.Nodes, c.Placement, c.Bases = 3, ChunkAware, 64
		c.Costs.Starts["restore"], c.Costs.Fetch, c.Costs.FetchShared = Distribution{0, 0}, Distribution{1, 1}, 0.8
	})
	if math.Abs(r.Wait.P50-0.2) > 0.01 || math.Abs(r.Wait.Max-1) > 0.01 {
		t.Errorf("waits are %+v, want of 1 and 0.2 s", r.Wait)
	}
}

func TestRefuses(t *testing.T) {
	tr := calls(t, [3]float64{1, 0, 1})
	spec, _ := scale.Parse("")
	for name, c := range map[string]Config{
		"no trace":    {Costs: secondStarts(), Start: "restore"},
		"no start":    {Trace: tr, Costs: secondStarts(), Start: "boot"},
		"nodes":       {Trace: tr, Costs: secondStarts(), Start: "restore", Nodes: -1},
		"a placement": {Trace: tr, Costs: secondStarts(), Start: "restore", Placement: "here"},
		"bases":       {Trace: tr, Costs: secondStarts(), Start: "restore", Bases: 65},
	} {
		c.Policy = spec
		if _, err := Run(context.Background(), c); err == nil {
			t.Errorf("%s: it ran", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(ctx, Config{Trace: tr, Costs: secondStarts(), Start: "restore", Policy: spec}); err == nil {
		t.Error("it ran though it was told to stop")
	}
}

func TestEventsAreInOrder(t *testing.T) {
	var e events
	w := newWorld(&Config{Trace: calls(t, [3]float64{1, 0, 1}), Costs: secondStarts(), Nodes: 1, Seed: 5})
	n := 10000
	for range n {
		e.push(event{at: w.rand.Int64N(1000)})
		if w.rand.IntN(3) == 0 {
			e.pop()
			n--
		}
	}
	last := int64(-1)
	for range len(e.heap) {
		v := e.pop()
		if v.at < last {
			t.Fatal("out of order")
		}
		last = v.at
	}
}

func records() []api.Invocation {
	rec := func(start api.StartKind, policy string, total, process time.Duration) api.Invocation {
		r := api.Invocation{Function: "f", Start: start, Status: 200, Phases: api.Phases{Total: total, Process: process}}
		if policy != "" {
			r.Memory = &api.MemoryStats{Policy: policy}
		}
		return r
	}
	failed := rec(api.StartWarm, "", time.Hour, 0)
	failed.Failure = api.FailureFunction
	other := rec(api.StartBoot, "", time.Hour, 0)
	other.Function = "never-warm"
	return []api.Invocation{
		rec(api.StartWarm, "", 12*time.Millisecond, 10*time.Millisecond), failed, other,
		rec(api.StartRestore, "reap", 112*time.Millisecond, 0), rec(api.StartRestore, "reap", 212*time.Millisecond, 0),
		rec(api.StartBoot, "", 4012*time.Millisecond, 0),
	}
}

func TestCostsOfRecords(t *testing.T) {
	check := func(c *Costs, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(c.Names(), []string{"boot", "reap"}) {
			t.Fatalf("%v", c.Names())
		}
		near := func(got, want float64) {
			t.Helper()
			if math.Abs(got-want) > 1e-9 {
				t.Errorf("%v, want %v", got, want)
			}
		}
		near(c.Starts["boot"].At(0.5), 4)
		near(c.Starts["reap"].At(0), 0.1)
		near(c.Starts["reap"].At(0.5), 0.15)
		near(c.Starts["reap"].At(1), 0.2)
		near(c.Warm.At(0.5), 0.002)
	}
	c, err := FromRecords(records())
	check(c, err)
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	check(ReadCosts(&b))
	var lines bytes.Buffer
	e := json.NewEncoder(&lines)
	_ = e.Encode(map[string]any{"machine": "x"})
	for _, r := range records() {
		_ = e.Encode(map[string]any{"run": 1, "record": r})
	}
	check(ReadCosts(&lines))
	for _, bad := range []string{"", "{}", `{"starts":{"boot":[2,1]}}`, `{"starts":{"boot":[-1]}}`, `{"starts":{"boot":[]}}`, "no json"} {
		if _, err := ReadCosts(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzReadCosts(f *testing.F) {
	f.Add([]byte(`{"source":"x","starts":{"boot":[1,2]},"warm":[0],"overhead_mib":5}`))
	f.Add([]byte("{\"record\":{\"function\":\"f\"}}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ReadCosts(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, d := range c.Starts {
			for _, q := range []float64{0, 0.3, 1} {
				if v := d.At(q); !(v >= 0 && v <= maxSeconds) {
					t.Fatalf("%v at %v of %v", v, q, d)
				}
			}
		}
	})
}

func TestDistribution(t *testing.T) {
	d := Of([]float64{3, 1, 2})
	for q, want := range map[float64]float64{0: 1, 0.25: 1.5, 0.5: 2, 1: 3} {
		if got := d.At(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("at %v: %v, want %v", q, got, want)
		}
	}
	if Of(nil).At(0.5) != 0 || Of([]float64{7}).At(0.9) != 7 {
		t.Error("few samples")
	}
}

// What a simulation takes for each function that is called, whatever the policy: a million
// of them must fit into a machine's memory.
func TestMemoryIsBounded(t *testing.T) {
	const functions, most = 10_000, 1 << 10 // bytes for each
	tr, err := trace.Generator{Functions: functions, Minutes: 60, Rate: 0.05, Seed: 1}.Make()
	if err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, policy := range scale.Names() {
		before, took := heap(), int64(0)
		run(t, tr, policy, func(c *Config) {
			c.Progress = func(minute, of int) {
				if minute == of {
					took = (heap() - before) / functions
				}
			}
		})
		t.Logf("%s: %d bytes for each function", policy, took)
		if took <= 0 || took > most {
			t.Errorf("%s: %d bytes for each function, want at most %d", policy, took, most)
		}
	}
}

// A day of a trace of the size of Azure's of 2019, at a hundredth for each b.N. The
// whole is `skep simulate --functions 50000`.
func BenchmarkDay(b *testing.B) {
	tr, err := trace.Generator{Functions: 500, Seed: 1}.Make()
	if err != nil {
		b.Fatal(err)
	}
	for _, policy := range scale.Names() {
		b.Run(policy, func(b *testing.B) {
			calls := int64(0)
			for b.Loop() {
				calls += run(b, tr, policy, nil).Calls
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(calls), "ns/call")
		})
	}
}
