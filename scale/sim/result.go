package sim

import (
	"slices"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run came to.
type Result struct {
	Policy    string        `json:"policy"`
	Start     string        `json:"start"`
	Nodes     int           `json:"nodes"`
	NodeMiB   int64         `json:"node_mib,omitempty"`
	Placement Placement     `json:"placement"`
	Seed      uint64        `json:"seed"`
	Functions int           `json:"functions"` // that were called
	Length    time.Duration `json:"length_ns"` // of the trace

	Calls    int64   `json:"calls"`
	Cold     int64   `json:"cold"` // that waited for a start
	ColdPart float64 `json:"cold_part"`
	// ColdOf are quantiles over functions of the part of their calls that was cold.
	ColdOf Spread5 `json:"cold_part_of_functions"`
	Lost   int64   `json:"lost"` // that waited for longer than they may, or for ever

	Starts  int64 `json:"starts"`
	Ahead   int64 `json:"ahead"`  // of those, while nobody waited
	Unused  int64 `json:"unused"` // instances that ended without a request
	Evicted int64 `json:"evicted"`
	Fetches int64 `json:"fetches,omitempty"` // of snapshots to nodes
	// Fetched is how much that was, in whole snapshots: chunks that were there are not fetched.
	Fetched float64 `json:"fetched,omitempty"`

	Slowdown Percentiles   `json:"slowdown"` // how many times as long as warm a call took
	Wait     Percentiles   `json:"wait_s"`   // until an instance had it, in seconds
	Memory   Memory        `json:"memory"`   // of instances
	Took     time.Duration `json:"took_ns"`  // the simulation
}

// Memory that instances held.
type Memory struct {
	MeanMiB  float64   `json:"mean_mib"`
	PeakMiB  float64   `json:"peak_mib"`
	IdlePart float64   `json:"idle_part"`             // of it that idle ones held
	Minutes  []float64 `json:"minutes_mib,omitempty"` // at the end of each minute
}

// Percentiles of something over calls.
type Percentiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Spread5 is quartiles, and the ends.
type Spread5 struct {
	Min float64 `json:"min"`
	P25 float64 `json:"p25"`
	P50 float64 `json:"p50"`
	P75 float64 `json:"p75"`
	Max float64 `json:"max"`
}

// held integrates memory over time.
type held struct {
	all, idle, peak   float64 // MiB
	allTime, idleTime float64 // MiB × ns
	minutes           []float64
}

func (h *held) advance(d int64) {
	if d <= 0 {
		return
	}
	h.peak = max(h.peak, h.all)
	h.allTime += h.all * float64(d)
	h.idleTime += h.idle * float64(d)
}

func (w *world) sample() {
	w.held.minutes = append(w.held.minutes, max(0, w.held.all))
	if w.c.Until == 0 {
		w.measure()
	}
}

// measure has the result say what was held until now.
func (w *world) measure() {
	w.stats.length = w.now
	w.stats.allTime, w.stats.idleTime = w.held.allTime, w.held.idleTime
}

// stats count calls.
type stats struct {
	arrived, answered, lost, unserved int64
	cold, starts, ahead, unused       int64
	evicted, fetches                  int64
	fetched                           float64
	atOnce                            int64 // calls that did not wait

	slowdown *hdr.Histogram // in thousandths, of those that did
	wait     *hdr.Histogram // in microseconds, of those that did

	length            int64 // of the trace, and what was held within it
	allTime, idleTime float64
}

const maxSlowdown = 1_000_000_000 // thousandths

func (s *stats) init() {
	s.slowdown = hdr.New(1, maxSlowdown, 3)
	s.wait = hdr.New(1, int64(maxSeconds)*1e6, 3)
}

// call counts a call that an instance has got.
func (s *stats) call(waited, took int64, cold bool) {
	if cold {
		s.cold++
	}
	if waited <= 0 {
		s.atOnce++
		return
	}
	// Both are in range, but for what is too large.
	_ = s.slowdown.RecordValue(min(maxSlowdown, (waited+took)*1000/max(1, took)))
	_ = s.wait.RecordValue(min(int64(maxSeconds)*1e6, max(1, waited/1000)))
}

func percentiles(h *hdr.Histogram, unit float64) Percentiles {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / unit }
	return Percentiles{at(50), at(90), at(99), at(99.9), float64(h.Max()) / unit}
}

func (w *world) result() *Result {
	s := &w.stats
	r := &Result{
		Policy: w.c.Policy.String(), Start: w.c.Start, Nodes: w.c.Nodes, NodeMiB: w.c.NodeMiB, Placement: w.c.Placement, Seed: w.c.Seed,
		Length: time.Duration(s.length), Calls: s.arrived, Cold: s.cold, Lost: s.lost + s.unserved,
		Starts: s.starts, Ahead: s.ahead, Unused: s.unused, Evicted: s.evicted, Fetches: s.fetches, Fetched: s.fetched,
	}
	var parts []float64
	for i := range w.functions {
		if f := &w.functions[i]; f.calls > 0 {
			parts = append(parts, float64(f.cold)/float64(f.calls))
		}
	}
	r.Functions = len(parts)
	slices.Sort(parts)
	d := Distribution(parts)
	r.ColdOf = Spread5{d.At(0), d.At(0.25), d.At(0.5), d.At(0.75), d.At(1)}
	if r.Calls > 0 {
		r.ColdPart = float64(r.Cold) / float64(r.Calls)
	}
	if s.atOnce > 0 {
		_ = s.slowdown.RecordValues(1000, s.atOnce)
		_ = s.wait.RecordValues(0, s.atOnce)
	}
	r.Slowdown, r.Wait = percentiles(s.slowdown, 1000), percentiles(s.wait, 1e6)
	r.Memory = Memory{PeakMiB: w.held.peak, Minutes: w.held.minutes}
	if s.length > 0 && s.allTime > 0 {
		r.Memory.MeanMiB, r.Memory.IdlePart = s.allTime/float64(s.length), s.idleTime/s.allTime
	}
	return r
}
