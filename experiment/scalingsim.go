package experiment

import (
	"context"
	"errors"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	loader "github.com/skep-dev/skep/load"
	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/scale/sim"
)

// scaleTwin simulates what was run live, call by call: with what starts take when they are
// alone, and again with what they took in that run.
func (l *Lab) scaleTwin(ctx context.Context, run int, policy, start string) ([]Sample, error) {
	live := where(l.measured.Samples, func(s Sample) bool {
		return s.Experiment == scalingName && s.Run == run && s.Variant == livePart+policy+" "+start && s.Scaled != nil
	})
	calls := callsOf(live)
	if len(calls) == 0 {
		return nil, errors.New("what it is the twin of was not measured yet: run it again")
	}
	var until time.Duration // as long as the live run was looked at
	for _, s := range live {
		if m := s.Scaled.Held; m != nil {
			until = max(until, m.At)
		}
	}
	tr, err := traceOf(live)
	if err != nil {
		return nil, err
	}
	alone, err := l.costs(run, inCache)
	if err != nil {
		return nil, err
	}
	warm := warmOf(where(l.measured.Samples, func(s Sample) bool { return s.Experiment == scalingName }), run)
	alone.Warm = sim.Of(warm) // all that warm calls took: they were to run for nothing
	own := *alone
	own.Starts = map[string]sim.Distribution{start: ownStarts(calls, alone.Warm.At(0.5))}
	var samples []Sample
	for _, costs := range []*sim.Costs{alone, &own} {
		if len(costs.Starts[start]) == 0 {
			continue // nothing started
		}
		spec, err := scale.Parse(policy)
		if err != nil {
			return nil, err
		}
		r, err := sim.Run(ctx, sim.Config{Trace: tr, Policy: spec, Start: start, Costs: costs, MaxInstances: scaledMost, QueueTimeout: scaledTimeout, Until: until, Seed: l.Set.Scaling.withDefaults(l.Set.Quick).Seed})
		if err != nil {
			return nil, err
		}
		samples = append(samples, Sample{Time: time.Now().UTC(), Scaled: &Scaled{Result: r, Own: costs == &own}})
	}
	return samples, nil
}

func callsOf(samples []Sample) (calls []loader.Sample) {
	for _, s := range samples {
		if s.Scaled != nil && s.Scaled.Call != nil {
			calls = append(calls, *s.Scaled.Call)
		}
	}
	return calls
}

// traceOf is the trace of a live run's calls, of functions that take what their instances do.
func traceOf(live []Sample) (*trace.Trace, error) {
	var functions []trace.Function
	var in []trace.Invocation
	for _, s := range live {
		if c := s.Scaled.Call; c != nil {
			for len(functions) <= c.Function {
				functions = append(functions, trace.Function{})
			}
			functions[c.Function].MemoryMiB = s.Scaled.MemoryMiB
			in = append(in, trace.Invocation{At: c.At, Took: c.Took, Function: c.Function})
		}
	}
	return trace.Of(functions, in)
}

// ownStarts are by how many seconds longer cold calls took than warm ones that are alone.
func ownStarts(calls []loader.Sample, warm float64) sim.Distribution {
	var starts []float64
	for _, c := range calls {
		if c.Cold() && c.Lost == "" {
			starts = append(starts, max(0, (c.Latency-c.Took).Seconds()-warm))
		}
	}
	return sim.Of(starts)
}

// scaleLarge simulates a kind of policy with all its parameters on a trace at large.
func (l *Lab) scaleLarge(ctx context.Context, run int, kind, start string) ([]Sample, error) {
	load := l.Set.Scaling.withDefaults(l.Set.Quick)
	costs, err := l.costs(run, l.Set.Cold)
	if err != nil {
		return nil, err
	}
	tr, err := l.largeTrace(load)
	if err != nil {
		return nil, err
	}
	base := sim.Config{Trace: tr, Start: start, Costs: costs, QueueTimeout: time.Hour, Seed: load.Seed}
	var runs []sim.Config
	for _, policy := range scalingKinds(load.Speed)[kind].large {
		spec, err := scale.Parse(policy)
		if err != nil {
			return nil, err
		}
		c := base
		c.Policy = spec
		if kind != "greedy-dual" {
			runs = append(runs, c)
			continue
		}
		for _, part := range scalingNodes {
			c.NodeMiB = int64(part * memoryOf(tr))
			runs = append(runs, c)
		}
	}
	samples := make([]Sample, len(runs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, c := range runs {
		group.Go(func() error {
			r, err := sim.Run(ctx, c)
			if err == nil {
				r.Memory.Minutes = nil
				samples[i] = Sample{Time: time.Now().UTC(), Scaled: &Scaled{Result: r}}
			}
			return err
		})
	}
	return samples, group.Wait()
}

// memoryOf is what one instance of each function takes, in MiB.
func memoryOf(tr *trace.Trace) (mib float64) {
	for i := range tr.Functions {
		mib += tr.Functions[i].MemoryMiB
	}
	return mib
}

// largeTrace makes the trace at large, once.
func (l *Lab) largeTrace(load ScalingLoad) (tr *trace.Trace, err error) {
	if l.large == nil {
		l.large, err = trace.Generator{Functions: load.Functions, Minutes: load.Minutes, Rate: load.Rate, Seed: load.Seed}.Make()
	}
	return l.large, err
}
