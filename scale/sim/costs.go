package sim

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/skep-dev/skep/api"
)

// Costs are what things take on the machine that is simulated, as distributions.
type Costs struct {
	Source string `json:"source"` // where they are from
	// Starts are by how much longer a request takes that waits for a start than a warm
	// one of its function, in seconds: "boot", or the memory policy of restores.
	Starts map[string]Distribution `json:"starts"`
	// Warm is what the platform adds to a warm request, in seconds.
	Warm Distribution `json:"warm"`
	// Fetch is how long it takes to have a snapshot on a node that has not, in seconds.
	// Without it snapshots are everywhere.
	Fetch Distribution `json:"fetch,omitempty"`
	// FetchShared is the part of that, 0 to 1, which falls away where the node has a snapshot
	// on the same base: chunks of kernel, interpreter and libraries are the same.
	FetchShared float64 `json:"fetch_shared,omitempty"`
	// OverheadMiB is what an instance takes beside its function's memory.
	OverheadMiB float64 `json:"overhead_mib"`
}

// Distribution is the quantiles of something, from 0 to 1 at equal distances.
type Distribution []float64

// points of a distribution that is made of samples.
const points = 101

// Of makes a distribution of samples.
func Of(samples []float64) Distribution {
	if len(samples) == 0 {
		return nil
	}
	s := slices.Sorted(slices.Values(samples))
	d := make(Distribution, min(points, max(2, len(s))))
	for i := range d {
		d[i] = Distribution(s).At(float64(i) / float64(len(d)-1))
	}
	return d
}

// At is the quantile; 0 of an empty distribution.
func (d Distribution) At(q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	x := q * float64(len(d)-1)
	i := min(int(x), len(d)-1)
	if i == len(d)-1 {
		return d[i]
	}
	return d[i] + (x-float64(i))*(d[i+1]-d[i])
}

// Names of the starts that there are costs of, sorted.
func (c *Costs) Names() []string { return slices.Sorted(maps.Keys(c.Starts)) }

// Write writes the costs as JSON.
func (c *Costs) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(c)
}

// maxSeconds that anything takes: a day.
const maxSeconds = 86400

func (c *Costs) validate() error {
	if len(c.Starts) == 0 {
		return errors.New("there are no starts in it")
	}
	check := func(name string, d Distribution) error {
		if !slices.IsSorted(d) || len(d) > 0 && (!(d[0] >= 0) || !(d[len(d)-1] <= maxSeconds)) || slices.ContainsFunc(d, math.IsNaN) {
			return fmt.Errorf("%s: want ascending seconds from 0 to %d", name, maxSeconds)
		}
		return nil
	}
	for name, d := range c.Starts {
		if len(d) == 0 {
			return fmt.Errorf("start %q has no quantiles", name)
		}
		if err := check("start "+name, d); err != nil {
			return err
		}
	}
	if !(c.OverheadMiB >= 0 && c.OverheadMiB <= 1<<20) {
		return fmt.Errorf("overhead_mib is %v: want 0 to %d", c.OverheadMiB, 1<<20)
	}
	if !(c.FetchShared >= 0 && c.FetchShared <= 1) {
		return fmt.Errorf("fetch_shared is %v: want 0 to 1", c.FetchShared)
	}
	return errors.Join(check("warm", c.Warm), check("fetch", c.Fetch))
}

// ReadCosts reads costs: those that Write wrote, or the raw samples of `skep bench start`
// or `skep experiment`, JSON lines with records of invocations.
func ReadCosts(r io.Reader) (*Costs, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxCosts+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxCosts {
		return nil, fmt.Errorf("it has more than %d bytes", maxCosts)
	}
	c := &Costs{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err == nil && len(c.Starts) > 0 {
		return c, c.validate()
	}
	var records []api.Invocation
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxCosts)
	for n := 1; lines.Scan(); n++ {
		var line struct {
			Record *api.Invocation `json:"record"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("it is neither costs nor lines with records: line %d: %w", n, err)
		}
		if line.Record != nil {
			records = append(records, *line.Record)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return FromRecords(records)
}

// maxCosts bounds a file of costs, in bytes.
const maxCosts = 256 << 20

// FromRecords makes costs of records of invocations. Only functions that have warm ones,
// too, say what a start costs.
func FromRecords(records []api.Invocation) (*Costs, error) {
	type kind struct{ function, start string }
	warm := map[string][]float64{}
	cold := map[kind][]float64{}
	var over []float64
	for _, rec := range records {
		if rec.Failure != "" || rec.Status >= 400 || rec.Container != nil {
			continue
		}
		total := rec.Phases.Total.Seconds()
		switch rec.Start {
		case api.StartWarm:
			if rec.Phases.Queue < rec.Phases.Total/10 { // it did not wait for another
				warm[rec.Function] = append(warm[rec.Function], total)
				over = append(over, max(0, total-rec.Phases.Process.Seconds()-rec.Phases.Stream.Seconds()))
			}
		case api.StartBoot:
			k := kind{rec.Function, "boot"}
			cold[k] = append(cold[k], total)
		case api.StartRestore:
			if rec.Memory != nil && rec.Memory.Policy != "" {
				k := kind{rec.Function, rec.Memory.Policy}
				cold[k] = append(cold[k], total)
			}
		}
	}
	samples := map[string][]float64{}
	n := 0
	for k, totals := range cold {
		if len(warm[k.function]) == 0 {
			continue
		}
		own := Of(warm[k.function]).At(0.5)
		for _, t := range totals {
			samples[k.start] = append(samples[k.start], max(0, t-own))
			n++
		}
	}
	if n == 0 {
		return nil, errors.New("there are no records of a function that has both started and answered when it was warm")
	}
	c := &Costs{Source: fmt.Sprintf("%d starts and %d warm requests", n, len(over)), Starts: map[string]Distribution{}, Warm: Of(over)}
	for start, s := range samples {
		c.Starts[start] = Of(s)
	}
	return c, c.validate()
}
