// Package load calls functions by a plan, open loop: each call is sent when it is
// due, whether or not those before it are answered, and its latency counts from
// when it was due, so that a server that falls behind is not asked less and hides
// nothing (no coordinated omission). Plans are a constant, Poisson, bursty or
// stepwise rate, or a trace of package trace. `skep load` calls it.
package load

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/load/trace"
)

// Plan is what will be called, when.
type Plan struct {
	Source    string // how it was made
	Seed      uint64
	Functions []string // names
	MemoryMiB []float64
	Calls     []Call // in the order of time
}

// Call is one.
type Call struct {
	At       time.Duration // since the beginning
	Took     time.Duration // that the function is to run for
	MiB      int           // that it is to take
	Function int           // index into the plan's
}

// maxCalls of a plan: 40 bytes each.
const maxCalls = 20_000_000

// Digest is of all that the plan's calls are: two of the same digest send the same.
func (p *Plan) Digest() string {
	h := sha256.New()
	var b [32]byte
	for _, c := range p.Calls {
		for i, v := range []int{int(c.At), int(c.Took), c.MiB, c.Function} {
			binary.LittleEndian.PutUint64(b[8*i:], uint64(v))
		}
		h.Write(b[:])
	}
	fmt.Fprint(h, p.Functions)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Synthetic is a plan of calls of one function that come by a rate:
//
//	constant:rate=10                             a call every tenth of a second
//	poisson:rate=10                              ten a second, at random
//	mmpp:low=1,high=50,calm=20s,burst=2s         Poisson that goes between two rates; how long they last is exponential
//	steps:from=5,by=5,every=10s                  Poisson, faster step by step
type Synthetic struct {
	Source   string
	Duration time.Duration // of all
	Took     time.Duration // of each call
	MiB      int           // of each
	Function string
	Seed     uint64
}

// sources has the parameters of each with their defaults, durations in seconds.
var sources = map[string]map[string]float64{
	"constant": {"rate": 10},
	"poisson":  {"rate": 10},
	"mmpp":     {"low": 1, "high": 50, "calm": 20, "burst": 2},
	"steps":    {"from": 5, "by": 5, "every": 10},
}

// parseSource reads a source's text.
func parseSource(text string) (name string, v map[string]float64, err error) {
	name, rest, given := strings.Cut(text, ":")
	defaults, ok := sources[name]
	if !ok {
		return "", nil, fmt.Errorf("source %q: want constant, poisson, mmpp or steps", text)
	}
	v = map[string]float64{}
	for k, d := range defaults {
		v[k] = d
	}
	if !given {
		return name, v, nil
	}
	for _, pair := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if _, ok := v[key]; !ok {
			return "", nil, fmt.Errorf("source %q: %s has no parameter %q", text, name, key)
		}
		x, err := strconv.ParseFloat(value, 64)
		if d, e := time.ParseDuration(value); e == nil && (key == "calm" || key == "burst" || key == "every") {
			x, err = d.Seconds(), nil
		}
		if err != nil || !(x >= 0 && x <= 1e6) {
			return "", nil, fmt.Errorf("source %q: %s is %q: want 0 to 1000000, or a duration as 20s", text, key, value)
		}
		v[key] = x
	}
	return name, v, nil
}

// Plan makes it.
func (s Synthetic) Plan() (*Plan, error) {
	name, v, err := parseSource(s.Source)
	if err != nil {
		return nil, err
	}
	if s.Duration <= 0 || s.Took < 0 || s.MiB < 0 {
		return nil, fmt.Errorf("a plan of %v, calls of %v and %d MiB: want a duration, and neither below 0", s.Duration, s.Took, s.MiB)
	}
	p := &Plan{Source: s.Source, Seed: s.Seed, Functions: []string{s.Function}, MemoryMiB: []float64{float64(s.MiB)}}
	r := rand.New(rand.NewPCG(s.Seed, 11))
	rate := func(float64) float64 { return v["rate"] }
	switch name {
	case "mmpp":
		rate = mmpp(r, v)
	case "steps":
		rate = func(t float64) float64 { return v["from"] + v["by"]*math.Floor(t/max(v["every"], 1e-3)) }
	}
	most := max(v["rate"], v["low"], v["high"], v["from"]+v["by"]*math.Floor(s.Duration.Seconds()/max(v["every"], 1e-3)))
	if v["rate"]*s.Duration.Seconds() > maxCalls {
		return nil, fmt.Errorf("source %q for %v: more than %d calls", s.Source, s.Duration, maxCalls)
	}
	for t := 0.0; ; {
		// Thinning: candidates at the highest rate, of which so many are taken as the rate at
		// their time is of it.
		gap := 1 / most
		if name != "constant" {
			gap *= r.ExpFloat64()
		}
		if len(p.Calls) > 0 || name != "constant" {
			t += gap
		}
		if !(t < s.Duration.Seconds()) {
			break
		}
		if name != "constant" && r.Float64()*most >= rate(t) {
			continue
		}
		if len(p.Calls) == maxCalls {
			return nil, fmt.Errorf("source %q for %v: more than %d calls", s.Source, s.Duration, maxCalls)
		}
		p.Calls = append(p.Calls, Call{At: time.Duration(t * float64(time.Second)), Took: s.Took, MiB: s.MiB})
	}
	if len(p.Calls) == 0 {
		return nil, fmt.Errorf("source %q for %v: no call", s.Source, s.Duration)
	}
	return p, nil
}

// mmpp is the rate of a Markov-modulated Poisson process of two states.
func mmpp(r *rand.Rand, v map[string]float64) func(float64) float64 {
	bursts, until := false, v["calm"]*r.ExpFloat64()
	return func(t float64) float64 {
		for t >= until {
			bursts = !bursts
			mean := v["calm"]
			if bursts {
				mean = v["burst"]
			}
			until += max(1e-3, mean*r.ExpFloat64())
		}
		if bursts {
			return v["high"]
		}
		return v["low"]
	}
}

// OfTrace makes a plan of a trace's calls. Time passes speed times as fast, so that an hour
// can be had in minutes; how long calls take stays.
func OfTrace(t *trace.Trace, source string, speed float64, seed uint64) (*Plan, error) {
	if !(speed > 0 && speed <= 1e6) {
		return nil, fmt.Errorf("a trace at %v times its speed: want more than 0", speed)
	}
	if t.Calls() > maxCalls {
		return nil, fmt.Errorf("the trace has %d calls, more than %d: take a sample, or fewer minutes", t.Calls(), maxCalls)
	}
	p := &Plan{Source: fmt.Sprintf("%s at %g times its speed", source, speed), Seed: seed}
	for i := range t.Functions {
		p.Functions = append(p.Functions, fmt.Sprintf("load-%d", i))
		p.MemoryMiB = append(p.MemoryMiB, t.Functions[i].MemoryMiB)
	}
	var in []trace.Invocation
	for m := range t.Minutes() {
		in = t.Minute(m, seed, in[:0])
		for _, c := range in {
			p.Calls = append(p.Calls, Call{At: time.Duration(float64(c.At) / speed), Took: c.Took.Round(time.Millisecond), MiB: int(t.Functions[c.Function].MemoryMiB), Function: c.Function})
		}
	}
	return p, nil
}
