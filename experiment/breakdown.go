package experiment

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// breakdown is the paper's figure 2: where a cold start with a mapped snapshot
// spends its time, beside a warm call.
var breakdown = &Experiment{
	Name: "breakdown", Figure: "Figure 2", Title: "Where a cold start spends its time",
	Question: "How much longer than a warm call is a cold one when the snapshot is mapped and paged in by the kernel, and in which part?",
	Points: func(set Settings) []Point {
		return turns(set, set.Functions, []string{"mmap", "warm"})
	},
	Measure: func(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
		name, err := l.Function(ctx, p.Function, "", nil)
		if err != nil {
			return nil, err
		}
		if p.Variant == "warm" {
			return one(l.Warm(ctx, name, p.Input))
		}
		return one(l.Cold(ctx, name, p.Variant, p.Input))
	},
	Show: showBreakdown,
}

func showBreakdown(all []Sample) Section {
	c := &chart.Bars{
		Info: chart.Info{Name: "fig2-breakdown", Title: "A cold start from a mapped snapshot, and a warm call",
			Caption: stageCaption + " The paper's value is of the whole."},
		Unit: "ms", Keys: stageKeys(),
	}
	t := Table{Name: "fig2-breakdown", Head: []string{"function", "cold ms", "load VMM", "connection", "processing", "warm ms", "cold / warm processing", "paper cold", "paper warm"}}
	var slower, before []float64
	for _, f := range functionsOf(all) {
		cold, warm, paper := pick(all, f, "mmap"), pick(all, f, "warm"), inPaper(f)
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{stageBar("cold", cold, paper.vanilla), stageBar("warm", warm, paper.warm)}})
		part := func(of []Sample, i int) float64 {
			return stat.Median(values(of, func(s Sample) float64 { return stageTime(s, stages[i]) }))
		}
		ratio := part(cold, 3) / part(warm, 3)
		slower, before = append(slower, ratio), append(before, part(cold, 0)+part(cold, 2))
		t.Rows = append(t.Rows, []string{f, span(summary(cold)), number(part(cold, 0)), number(part(cold, 2)), number(part(cold, 3)),
			span(summary(warm)), times(ratio), paperNumber(paper.vanilla), paperNumber(paper.warm)})
	}
	low, high := extremes(before)
	return Section{
		Charts: []chart.Chart{c}, Tables: []Table{t},
		Findings: []string{
			fmt.Sprintf("Loading the VMM and restoring the connection take %s (paper: 156–317 ms).", between(low, high, " ms")),
			fmt.Sprintf("The function's own work takes %s as long cold as warm, in the geometric mean (paper: 1.95×).", times(stat.GeoMean(slower))),
		},
	}
}

func extremes(v []float64) (lo, hi float64) {
	for i, x := range v {
		if i == 0 || x < lo {
			lo = x
		}
		if i == 0 || x > hi {
			hi = x
		}
	}
	return lo, hi
}
