package load

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"

	"github.com/skep-dev/skep/experiment/stat"
)

// Report is what came of a run.
type Report struct {
	Source string `json:"source"`
	Seed   uint64 `json:"seed"`
	URL    string `json:"url"`

	Calls    int     `json:"calls"` // of the plan
	Done     int     `json:"done"`  // that are over
	Lost     int     `json:"lost"`  // of those, without the function's answer
	Cold     int     `json:"cold"`  // of those, that waited for a start
	ColdPart float64 `json:"cold_part"`
	Untold   int     `json:"untold"` // of those, of which the server did not say

	Latency     Quantiles `json:"latency_ms"`
	LatencyCold Quantiles `json:"latency_cold_ms"`
	LatencyWarm Quantiles `json:"latency_warm_ms"`
	// Slowdown is the latency over what a warm call of the function takes that waits for nobody:
	// for as long as it is to run, and what the tenth of warm ones that were quickest take beyond that.
	Slowdown Quantiles `json:"slowdown"`
	Late     Quantiles `json:"late_ms"` // how much later than due calls were sent: the loader's own doing

	MemoryMean float64 `json:"memory_mean_mib"` // of the server's instances, where it said
	MemoryPeak float64 `json:"memory_peak_mib"`

	Reasons map[string]int `json:"lost_because,omitempty"`

	samples []Sample // by n, one for each
	memory  []Memory
}

// Samples are the calls that are over, in the order of the plan.
func (r *Report) Samples() []Sample { return r.samples }

// Memory is what the server's instances held, each time it was asked.
func (r *Report) Memory() []Memory { return r.memory }

// Of is the report of calls that are over, one for each of a plan, and of what instances
// held meanwhile.
func Of(samples []Sample, memory []Memory) *Report {
	r := &Report{Calls: len(samples), samples: samples, memory: memory}
	slices.SortFunc(r.samples, func(a, b Sample) int { return a.N - b.N })
	r.count()
	for _, m := range memory {
		r.MemoryMean += m.MiB / float64(len(memory))
		r.MemoryPeak = max(r.MemoryPeak, m.MiB)
	}
	return r
}

// Quantiles of something over calls.
type Quantiles struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Read reads a directory of results.
func Read(dir string) (*Report, error) {
	f, err := os.Open(filepath.Join(dir, SamplesFile))
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	defer f.Close()
	byN := map[int]Sample{}
	var memory []Memory
	h, err := scan(f, func(l line, _ int64) error {
		if l.Sample != nil {
			byN[l.N] = *l.Sample
		}
		if l.Memory != nil {
			memory = append(memory, *l.Memory)
		}
		return nil
	})
	if err == nil && h == nil {
		err = errors.New("there is nothing in it")
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	r := Of(slices.Collect(maps.Values(byN)), memory)
	r.Source, r.Seed, r.URL, r.Calls = h.Source, h.Seed, h.URL, h.Calls
	return r, nil
}

func (r *Report) count() {
	r.Done = len(r.samples)
	beyond := r.beyondTook()
	all, warm, chilled, late := newHistogram(), newHistogram(), newHistogram(), newHistogram()
	slow := newHistogram()
	for _, s := range r.samples {
		late.add(s.Late.Microseconds())
		if s.Lost != "" {
			r.Lost++
			if r.Reasons == nil {
				r.Reasons = map[string]int{}
			}
			r.Reasons[fmt.Sprintf("%.120s", s.Lost)]++
			continue
		}
		us := s.Latency.Microseconds()
		all.add(us)
		switch {
		case s.Cold():
			r.Cold++
			chilled.add(us)
		case s.Start == "":
			r.Untold++
		default:
			warm.add(us)
		}
		slow.add(int64(1000 * float64(s.Latency) / float64(max(s.Took+beyond[s.Function], time.Microsecond))))
	}
	if n := r.Done - r.Lost - r.Untold; n > 0 {
		r.ColdPart = float64(r.Cold) / float64(n)
	}
	r.Latency, r.LatencyWarm, r.LatencyCold, r.Late = all.quantiles(1000), warm.quantiles(1000), chilled.quantiles(1000), late.quantiles(1000)
	r.Slowdown = slow.quantiles(1000)
}

// beyondTook is what the tenth of each function's warm calls that were quickest took at most beyond
// what they were to run for; of all its calls where none is known to be warm. The median has the
// waits of a busy function in it, beside which its own slowdown would be none.
func (r *Report) beyondTook() map[int]time.Duration {
	warm, every := map[int][]time.Duration{}, map[int][]time.Duration{}
	for _, s := range r.samples {
		if s.Lost != "" {
			continue
		}
		d := max(0, s.Latency-s.Took)
		every[s.Function] = append(every[s.Function], d)
		if s.Start != "" && !s.Cold() {
			warm[s.Function] = append(warm[s.Function], d)
		}
	}
	out := map[int]time.Duration{}
	for f, v := range every {
		if w := warm[f]; len(w) > 0 {
			v = w
		}
		slices.Sort(v)
		out[f] = v[len(v)/10]
	}
	return out
}

type histogram struct{ *hdr.Histogram }

func newHistogram() histogram { return histogram{hdr.New(1, maxMicros, 3)} }

func (h histogram) add(v int64) { _ = h.RecordValue(min(maxMicros, max(0, v))) }

func (h histogram) quantiles(unit float64) Quantiles {
	if h.TotalCount() == 0 {
		return Quantiles{}
	}
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / unit }
	return Quantiles{h.Mean() / unit, at(50), at(90), at(99), at(99.9), float64(h.Max()) / unit}
}

// Compared is one kind of call in two runs.
type Compared struct {
	Calls       string     `json:"calls"`
	A           Quantiles  `json:"a_ms"` // latency
	B           Quantiles  `json:"b_ms"`
	Change      stat.Ratio `json:"change"` // of the medians, B over A
	P           *float64   `json:"p,omitempty"`
	Significant bool       `json:"significant"`
}

// compareMost is how many latencies of a run are compared, spread over it: comparing means
// drawing from them thousands of times.
const compareMost = 2000

// Compare compares the latencies of two runs: of all calls, of warm and of cold ones.
func Compare(a, b *Report) []Compared {
	var out []Compared
	for _, kind := range []struct {
		name string
		is   func(Sample) bool
	}{
		{"all", func(Sample) bool { return true }},
		{"warm", func(s Sample) bool { return s.Start != "" && !s.Cold() }},
		{"cold", func(s Sample) bool { return s.Cold() }},
	} {
		va, vb := a.latencies(kind.is), b.latencies(kind.is)
		if len(va) == 0 || len(vb) == 0 {
			continue
		}
		cmp := stat.Compare(thin(va), thin(vb))
		c := Compared{Calls: kind.name, A: quantilesOf(va), B: quantilesOf(vb), Change: cmp.Change, Significant: cmp.Significant}
		if !math.IsNaN(cmp.P) {
			c.P = &cmp.P
		}
		out = append(out, c)
	}
	return out
}

func (r *Report) latencies(is func(Sample) bool) (ms []float64) {
	for _, s := range r.samples {
		if s.Lost == "" && is(s) {
			ms = append(ms, float64(s.Latency)/1e6)
		}
	}
	return ms
}

func thin(v []float64) []float64 {
	if len(v) <= compareMost {
		return v
	}
	out := make([]float64, compareMost)
	for i := range out {
		out[i] = v[i*len(v)/compareMost]
	}
	return out
}

func quantilesOf(ms []float64) Quantiles {
	h := newHistogram()
	for _, v := range ms {
		h.add(int64(v * 1000))
	}
	return h.quantiles(1000)
}
