package experiment

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/memory/workingset"
)

// Three figures are made of the same traces: of the first input again, and of
// the others, each compared with one trace of the first.
const traces = "traces"

// traceRuns are the runs of those that compare traces.
const traceRuns = 5

const (
	sameInput    = "same input"
	anotherInput = "other input"
)

// contiguity is figure 3, reuse figure 5, mispredictions section 7.1.
var (
	contiguity = &Experiment{
		Name: "contiguity", Figure: "Figure 3", Title: "Pages in a row", Data: traces, Runs: traceRuns,
		Question: "How many pages that an invocation touches lie next to each other in guest memory?",
		Points:   tracePoints, Measure: measureTraces, Show: showContiguity,
	}
	reuse = &Experiment{
		Name: "reuse", Figure: "Figure 5", Title: "Pages used again with another input", Data: traces, Runs: traceRuns,
		Question: "How many pages does an invocation share with an earlier one that had a different input?",
		Points:   tracePoints, Measure: measureTraces, Show: showReuse,
	}
	mispredictions = &Experiment{
		Name: "mispredictions", Figure: "Section 7.1", Title: "Pages prefetched in vain", Data: traces, Runs: traceRuns,
		Question: "How many pages of a recorded working set does an invocation with a different input never touch?",
		Points:   tracePoints, Measure: measureTraces, Show: showMispredictions,
	}
)

func tracePoints(set Settings) []Point {
	points := turns(set, set.Functions, []string{sameInput, anotherInput})
	for i := range points {
		if points[i].Variant == sameInput {
			points[i].Input = 1
		}
		points[i].Seconds++
	}
	return points
}

func measureTraces(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	first, err := l.First(ctx, name)
	if err != nil {
		return nil, err
	}
	s, t, err := l.Trace(ctx, name, p.Input)
	if err == nil {
		s.Pages = comparePages(first, t)
	}
	return one(s, err)
}

// longest is the last class of run lengths: that many pages or more.
const longest = 16

// comparePages describes t beside an earlier trace of the same snapshot.
func comparePages(first, t *workingset.Trace) *Pages {
	before := map[uint32]bool{}
	for _, p := range first.Pages() {
		before[p] = true
	}
	p := &Pages{PageSummary: t.Summary(nil), Lengths: make([]int, longest)}
	for _, page := range t.Pages() {
		if before[page] {
			p.Same++
		} else {
			p.Unique++
		}
	}
	p.Missing = len(before) - p.Same
	for _, r := range workingset.Runs(t.Touches, func(uint32) bool { return false }, 0) {
		p.Lengths[min(int(r.Pages), longest)-1]++
	}
	return p
}

func ofPages(f func(*Pages) float64) func(Sample) float64 {
	return func(s Sample) float64 {
		if s.Pages == nil {
			return 0
		}
		return f(s.Pages)
	}
}

func showContiguity(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "fig3-contiguity", Title: "Pages in a run, on average",
		Caption: "Pages that one invocation touched after its restore, all served one by one, so that the kernel's read-ahead has no part in it."}, Unit: "pages"}
	t := Table{Name: "fig3-contiguity", Head: []string{"function", "pages", "runs", "pages in a run", "runs of one page", "longest", "paper"}}
	var mean []float64
	for _, f := range functionsOf(all) {
		of := pick(all, f, "")
		v := values(of, ofPages(func(p *Pages) float64 { return p.Contiguity }))
		mean = append(mean, stat.Median(v))
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{chart.NewBar("", chart.Blue, v, inPaper(f).contiguity)}})
		med := func(g func(*Pages) float64) float64 { return stat.Median(values(of, ofPages(g))) }
		t.Rows = append(t.Rows, []string{f, number(med(func(p *Pages) float64 { return float64(p.Pages) })),
			number(med(func(p *Pages) float64 { return float64(p.Runs) })), span(stat.Summarize(v)),
			percent(med(func(p *Pages) float64 { return float64(p.Lengths[0]) / max(float64(p.Runs), 1) })),
			number(med(func(p *Pages) float64 { return float64(p.LongestRun) })), paperNumber(inPaper(f).contiguity)})
	}
	low, high := extremes(mean)
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("Runs are %s pages long on average (paper: 1.6–4.9): reading single pages at random is what a lazy restore comes down to.", between(low, high, "")),
	}}
}

func showReuse(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "fig5-reuse", Title: "Pages of an invocation with another input",
		Caption: "Same: an earlier invocation of the same snapshot, with the first input, touched them too. The paper's value is the sum of its two."},
		Unit: "pages", Keys: []chart.Key{{Name: "same", Ink: chart.Blue}, {Name: "unique", Ink: chart.Orange}}}
	t := Table{Name: "fig5-reuse", Head: []string{"function", "same", "unique", "reused", "reused, same input", "paper same", "paper unique", "paper reused"}}
	share := func(of []Sample) float64 {
		return stat.Median(values(of, ofPages(func(p *Pages) float64 { return float64(p.Same) / max(float64(p.Same+p.Unique), 1) })))
	}
	var most int
	fs := functionsOf(all)
	for _, f := range fs {
		of, paper := pick(all, f, anotherInput), inPaper(f)
		same := stat.Median(values(of, ofPages(func(p *Pages) float64 { return float64(p.Same) })))
		unique := stat.Median(values(of, ofPages(func(p *Pages) float64 { return float64(p.Unique) })))
		pages := values(of, ofPages(func(p *Pages) float64 { return float64(p.Same + p.Unique) }))
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{{
			Parts:   []chart.Part{{Name: "same", Value: same, Ink: chart.Blue}, {Name: "unique", Value: unique, Ink: chart.Orange}},
			Summary: stat.Summarize(pages), Samples: pages, Paper: paper.same + paper.unique,
		}}})
		inPaper := ""
		if paper.same > 0 {
			inPaper = percent(paper.same / (paper.same + paper.unique))
		}
		if share(of) >= 0.97 {
			most++
		}
		t.Rows = append(t.Rows, []string{f, number(same), number(unique), percent(share(of)), percent(share(pick(all, f, sameInput))),
			paperNumber(paper.same), paperNumber(paper.unique), inPaper})
	}
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("%d of %d functions use at least 97%% of their pages again with another input (paper: 7 of 10).", most, len(fs)),
	}}
}

func showMispredictions(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "sec7-mispredictions", Title: "Share of prefetched pages that were never touched",
		Caption: "Pages in the trace of the first input that the invocation's own trace does not have. The same input shows what is noise of the guest and not the input's doing."},
		Unit: "%", Keys: []chart.Key{{Name: sameInput, Ink: chart.Grey}, {Name: anotherInput, Ink: chart.Orange}}}
	t := Table{Name: "sec7-mispredictions", Head: []string{"function", "prefetched pages", "in vain, same input", "in vain, other input"}}
	var seen []float64
	for _, f := range functionsOf(all) {
		wasted := func(variant string) []float64 {
			return values(pick(all, f, variant), ofPages(func(p *Pages) float64 { return 100 * float64(p.Missing) / max(float64(p.Same+p.Missing), 1) }))
		}
		same, other := wasted(sameInput), wasted(anotherInput)
		seen = append(seen, stat.Median(other))
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{
			chart.NewBar(sameInput, chart.Grey, same, 0), chart.NewBar(anotherInput, chart.Orange, other, 0)}})
		pages := stat.Median(values(pick(all, f, anotherInput), ofPages(func(p *Pages) float64 { return float64(p.Same + p.Missing) })))
		t.Rows = append(t.Rows, []string{f, number(pages), span(stat.Summarize(same)) + " %", span(stat.Summarize(other)) + " %"})
	}
	low, high := extremes(seen)
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("%s of a recorded working set is prefetched in vain (paper: 3–39%%).", between(low, high, "%")),
	}}
}
