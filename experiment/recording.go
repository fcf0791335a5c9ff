package experiment

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// recording is the paper's section 6.4: what the first invocation, which
// records, pays for those after it.
var recording = &Experiment{
	Name: "recording", Figure: "Section 6.4", Title: "What recording costs",
	Question: "How much slower than a mapped start is the one start that records the working set?",
	Points: func(set Settings) []Point {
		return turns(set, set.Functions, []string{"mmap", "record"})
	},
	Measure: func(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
		if p.Variant == "mmap" {
			return measureCold(ctx, l, p)
		}
		name, err := l.Function(ctx, p.Function, "", nil)
		if err != nil {
			return nil, err
		}
		s, _, err := l.Trace(ctx, name, p.Input)
		return one(s, err)
	},
	Show: showRecording,
}

func showRecording(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "sec6-recording", Title: "A start that records, beside a mapped one",
		Caption: "Writing trace and working set comes after the response and is not in these times."}, Unit: "ms",
		Keys: []chart.Key{{Name: "mmap", Ink: chart.Grey}, {Name: "record", Ink: chart.Blue}}}
	t := Table{Name: "sec6-recording", Head: []string{"function", "mmap ms", "record ms", "overhead", "pages recorded"}}
	var ratios []float64
	for _, f := range functionsOf(all) {
		m, r := pick(all, f, "mmap"), pick(all, f, "record")
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{
			chart.NewBar("mmap", chart.Grey, totals(m), 0), chart.NewBar("record", chart.Blue, totals(r), 0)}})
		over := ratio(r, m)
		ratios = append(ratios, over.Value)
		t.Rows = append(t.Rows, []string{f, span(summary(m)), span(summary(r)), percent(over.Value - 1), number(medianFaults(r))})
	}
	low, high := extremes(ratios)
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("Recording costs %s, %s in the geometric mean (paper: 15–87%%, 28%% on average).", between(100*(low-1), 100*(high-1), "%"), percent(stat.GeoMean(ratios)-1)),
	}}
}
