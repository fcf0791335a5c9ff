package experiment

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// concurrency is the paper's figure 9: cold starts of independent functions at
// once. VMs as far as the machine has room; further by replay.
var concurrency = &Experiment{
	Name: "concurrency", Figure: "Figure 9", Title: "Cold starts at once",
	Question: "How does the time of a cold start grow when many independent functions start at the same moment?",
	Runs:     5,
	Points:   concurrencyPoints,
	Measure: func(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
		if policy, ok := replayed(p.Variant); ok {
			return l.replayAtOnce(ctx, p, policy)
		}
		return l.startAtOnce(ctx, p)
	},
	Show: showConcurrency,
}

// atOnce are the numbers of instances.
var atOnce = []int{1, 2, 4, 8, 16, 32, 64}

func concurrencyPoints(set Settings) []Point {
	f := simplest(set)
	var out []Point
	for run := range set.Runs {
		for _, n := range atOnce {
			if n <= set.MaxVMs {
				for _, v := range []string{"mmap", "reap", "stream"} {
					out = append(out, Point{Function: f, Variant: v, N: n, Run: run, Input: otherInput(run), Seconds: 1.5 + float64(n)})
				}
			}
			if n <= set.MaxReplays {
				for _, v := range []string{"mmap", "lazy", "reap", "stream"} {
					out = append(out, Point{Function: f, Variant: v + replaySuffix, N: n, Run: run, Seconds: 1 + 0.35*float64(n)})
				}
			}
		}
	}
	return out
}

// startAtOnce starts N functions, each with a snapshot of its own.
func (l *Lab) startAtOnce(ctx context.Context, p Point) ([]Sample, error) {
	names := make([]string, p.N)
	for i := range names {
		var err error
		if names[i], err = l.Function(ctx, p.Function, fmt.Sprintf("-n%d", i), nil); err != nil {
			return nil, err
		}
		if err := l.Train(ctx, names[i], 1); err != nil {
			return nil, err
		}
	}
	cache, err := l.Chill(ctx, names...)
	if err != nil {
		return nil, err
	}
	samples := make([]Sample, p.N)
	var group errgroup.Group
	for i, name := range names {
		group.Go(func() (err error) {
			samples[i], err = l.invoke(ctx, name, invocation{start: api.StartRestore, policy: p.Variant, input: p.Input})
			samples[i].Cache = cache
			return err
		})
	}
	return samples, group.Wait()
}

func showConcurrency(all []Sample) Section {
	vms := &chart.Lines{Info: chart.Info{Name: "fig9-concurrency", Title: "Microvms started at once: time of one",
		Caption: "Real microvms, each of a function of its own. Dashed: the paper's, on 48 cores with KVM. Points are medians over instances and runs."},
		XLabel: "instances at once", YLabel: "ms", XLog: true, YLog: true}
	rep := &chart.Lines{Info: chart.Info{Name: "fig9-replay", Title: "Replayed at once, without VMs: time of one",
		Caption: "Replayed: processes touch the pages of the recorded trace, as fast as they can, each of a copy of the snapshot of its own; under mmap the kernel serves them, else the same code as VMs. No VMM is started and no guest code runs."},
		XLabel: "instances at once", YLabel: "ms", XLog: true, YLog: true}
	t := Table{Name: "fig9-concurrency", Head: []string{"policy", "instances", "kind", "one instance ms", "all of them ms", "read MB/s", "paper ms"}}
	for _, v := range variantsOf(all) {
		policy, isReplay := replayed(v)
		s := chart.Series{Name: policy, Ink: chart.PolicyInk(policy)}
		of := pick(all, "", v)
		ns := distinct(of, func(s Sample) int { return s.N })
		slices.Sort(ns)
		for _, n := range ns {
			at := where(of, func(s Sample) bool { return s.N == n })
			s.Points = append(s.Points, chart.NewXY(float64(n), totals(at)))
			last, speed := waves(at)
			paper, kind := paperAtOnce[policy][n], "VM"
			if isReplay {
				paper, kind = 0, "replayed"
			}
			t.Rows = append(t.Rows, []string{policy, itoa(n), kind, span(summary(at)), number(last), number(speed), paperNumber(paper)})
		}
		if isReplay {
			rep.Series, rep.XTicks = append(rep.Series, s), ticksOf(ns)
		} else {
			vms.Series = append(vms.Series, s)
		}
	}
	for _, policy := range []string{"mmap", "reap"} {
		s := chart.Series{Name: policy + ", paper", Ink: chart.PolicyInk(policy), Dashed: true}
		for _, n := range atOnce {
			s.Points = append(s.Points, chart.XY{X: float64(n), Summary: stat.Summary{Median: paperAtOnce[policy][n]}})
		}
		vms.Series = append(vms.Series, s)
	}
	vms.XTicks = ticksOf(atOnce)
	charts := []chart.Chart{vms, rep}
	if !slices.ContainsFunc(all, func(s Sample) bool { return !s.Replayed }) {
		charts = charts[1:]
	}
	return Section{Charts: charts, Tables: []Table{t}, Findings: concurrencyFindings(all),
		Caveats: []string{"Under emulation every guest keeps a core busy translating code: beyond as many VMs as cores, their times are those of waiting for a core, whatever the policy."}}
}

func ticksOf(ns []int) []float64 {
	var at []float64
	for _, n := range ns {
		at = append(at, float64(n))
	}
	return at
}

// waves are the medians over runs of the last instance's time, and of what was
// read until then, in MB/s.
func waves(at []Sample) (last, speed float64) {
	var lasts, speeds []float64
	for _, run := range distinct(at, func(s Sample) int { return s.Run }) {
		slowest, bytes := 0.0, 0.0
		for _, s := range where(at, func(s Sample) bool { return s.Run == run }) {
			slowest = max(slowest, s.Total())
			if s.Replay != nil {
				bytes += float64(s.Replay.Bytes)
			} else if s.Record != nil && s.Record.Memory != nil {
				bytes += float64(s.Record.Memory.BytesRead)
			}
		}
		lasts, speeds = append(lasts, slowest), append(speeds, bytes/1e6/(slowest/1e3))
	}
	return stat.Median(lasts), stat.Median(speeds)
}

func concurrencyFindings(all []Sample) []string {
	var out []string
	for _, suffix := range []string{"", replaySuffix} {
		base, kind := "mmap", "With VMs"
		if suffix != "" {
			kind = "Replayed"
		}
		most := 0
		for _, s := range all {
			if _, ok := replayed(s.Variant); ok == (suffix != "") {
				most = max(most, s.N)
			}
		}
		at := func(v string) []float64 {
			return totals(where(all, func(s Sample) bool { return s.N == most && s.Variant == v+suffix }))
		}
		if r, s := stat.Ratios(at(base), at("reap")), stat.Ratios(at(base), at("stream")); most > 0 && r.Value > 0 {
			out = append(out, fmt.Sprintf("%s, %d at once: reap takes 1/%s and stream 1/%s of the time of %s.", kind, most, number(r.Value), number(s.Value), base))
		}
	}
	return append(out, "The paper at 64: REAP takes 1/6 of the time of vanilla snapshots.")
}
