package experiment

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// drift is what the paper's section 7.2 proposes and nobody built: a working set
// that follows a function whose input changes.
var drift = &Experiment{
	Name: "drift", Figure: "Section 7.2", Title: "When the input changes for good",
	Question: "How many page faults remain after prefetching, start by start, when a function's input changes and stays changed?",
	Runs:     5,
	Points: func(set Settings) []Point {
		var out []Point
		runs := set.Runs
		if set.Quick {
			runs = 1
		}
		for run := range runs {
			for _, v := range []string{"reap", "stream"} {
				out = append(out, Point{Function: drifter, Variant: v, Run: run, Seconds: 10 + 0.8*driftStarts})
			}
		}
		return out
	},
	Measure: measureDrift,
	Show:    showDrift,
}

// The function has a table of 32 MiB, of which an input needs a quarter: other
// pages for each.
const (
	drifter     = "hello"
	driftStarts = 14
	driftAt     = 5 // the start from which the input is another
)

// measureDrift makes a row of cold starts from a snapshot that is new to the
// policy; the first of them records.
func measureDrift(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "-drift", func(f *api.Function) {
		f.Env = map[string]string{"HELLO_TABLE_MIB": "32"}
	})
	if err != nil {
		return nil, err
	}
	// A snapshot of its own for each row: what was learned is part of it.
	if _, err := l.Client().CreateSnapshot(ctx, name); err != nil {
		return nil, err
	}
	var samples []Sample
	for i := range driftStarts {
		part := 0
		if i >= driftAt {
			part = 2
		}
		cache, err := l.Chill(ctx, name)
		if err != nil {
			return nil, err
		}
		s, err := l.invoke(ctx, name, invocation{start: api.StartRestore, policy: p.Variant, path: fmt.Sprintf("/table?parts=4&part=%d", part)})
		if err != nil {
			return nil, err
		}
		s.Cache = cache
		samples = append(samples, s)
	}
	return samples, nil
}

func showDrift(all []Sample) Section {
	info := func(name, title, caption string) chart.Info {
		return chart.Info{Name: name, Title: title, Caption: caption}
	}
	faults := &chart.Lines{Info: info("sec7-drift-faults", "Page faults left", "The first start records: under reap all of its pages are faults, under stream those beside what the snapshot's trial touched. reap keeps what it recorded, as in the paper; stream learns."),
		XLabel: "cold start", YLabel: "faults", Cut: driftAt + 0.5, CutLabel: "another input"}
	time := &chart.Lines{Info: info("sec7-drift-time", "Cold start", "The same starts."),
		XLabel: "cold start", YLabel: "ms", Cut: driftAt + 0.5, CutLabel: "another input"}
	t := Table{Name: "sec7-drift", Head: []string{"cold start", "input"}}
	rows := make([][]string, driftStarts)
	var out []string
	for _, v := range variantsOf(all) {
		t.Head = append(t.Head, v+" faults", v+" ms")
		f, tm := chart.Series{Name: v, Ink: chart.PolicyInk(v)}, chart.Series{Name: v, Ink: chart.PolicyInk(v)}
		for i := range driftStarts {
			at := where(all, func(s Sample) bool { return s.Variant == v && s.Instance == i })
			f.Points = append(f.Points, chart.NewXY(float64(i+1), values(at, Sample.Faults)))
			tm.Points = append(tm.Points, chart.NewXY(float64(i+1), totals(at)))
			if rows[i] == nil {
				rows[i] = []string{itoa(i + 1), map[bool]string{false: "first", true: "other"}[i >= driftAt]}
			}
			rows[i] = append(rows[i], span(stat.Summarize(values(at, Sample.Faults))), span(summary(at)))
		}
		faults.Series, time.Series = append(faults.Series, f), append(time.Series, tm)
		after := func(i int) float64 {
			return medianFaults(where(all, func(s Sample) bool { return s.Variant == v && s.Instance == i }))
		}
		out = append(out, fmt.Sprintf("%s: %s faults at the first start with the other input, %s at the last.", v, number(after(driftAt)), number(after(driftStarts-1))))
	}
	t.Rows = rows
	return Section{Charts: []chart.Chart{faults, time}, Tables: []Table{t}, Findings: out,
		Caveats: []string{"The paper proposes this and has no numbers for it. The function is ours: it sums one of four parts of a table of 32 MiB."}}
}
