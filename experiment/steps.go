package experiment

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// steps is the paper's figure 7: one optimisation after the other.
var steps = &Experiment{
	Name: "steps", Figure: "Figure 7", Title: "One optimisation after the other",
	Question: "What does each step from a mapped snapshot to REAP, and on to stream, gain for the simplest function?",
	Points: func(set Settings) []Point {
		return turns(set, []string{simplest(set)}, []string{"mmap", "lazy", "parallel", "wsfile", "reap", "stream", "resident"})
	},
	Measure: measureCold,
	Show:    showSteps,
}

// measureCold is a cold start whose policy is the variant.
func measureCold(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	return one(l.Cold(ctx, name, p.Variant, p.Input))
}

func showSteps(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "fig7-steps", Title: "Cold start by policy",
		Caption: "mmap: the kernel pages in; lazy: userfaultfd, page by page; parallel: the trace's pages by 16 readers; wsfile: the working-set file through the page cache; reap: the same past it; stream: overlapped with the VMM's start; resident: all of memory. lazy, stream and resident are not in the paper's figure. " + stageCaption}, Unit: "ms", Keys: stageKeys()}
	t := Table{Name: "fig7-steps", Head: []string{"policy", "cold start ms", "fetch ms", "read MB", "fetch MB/s", "faults", "paper ms", "paper MB/s"}}
	group := chart.Group{}
	for _, v := range variantsOf(all) {
		of := pick(all, "", v)
		group.Bars = append(group.Bars, stageBar(v, of, paperSteps[v]))
		memory := func(f func(Sample) float64) float64 { return stat.Median(values(of, f)) }
		fetch := memory(fetchTime)
		read := memory(func(s Sample) float64 { return float64(s.Record.Memory.BytesRead) / 1e6 })
		speed := "–"
		if fetch > 0 {
			speed = number(read / fetch * 1e3)
		}
		faults := number(memory(Sample.Faults))
		if v == "mmap" {
			faults = "not counted"
		}
		t.Rows = append(t.Rows, []string{v, span(summary(of)), number(fetch), number(read), speed, faults, paperNumber(paperSteps[v]), paperNumber(paperMBps[v])})
	}
	group.Label = functionsOf(all)[0]
	c.Groups = []chart.Group{group}
	base := pick(all, "", "mmap")
	var out []string
	for _, v := range []string{"reap", "stream"} {
		if r := ratio(base, pick(all, "", v)); r.Value > 0 {
			out = append(out, fmt.Sprintf("%s starts %s as fast as mmap [%s–%s].", v, times(r.Value), number(r.Lo), number(r.Hi)))
		}
	}
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: append(out, "The paper's steps: 232, 118, 71 and 60 ms, 3.9× in all.")}
}

func fetchTime(s Sample) float64 {
	if s.Record == nil || s.Record.Memory == nil {
		return 0
	}
	return ms(s.Record.Memory.FetchTime)
}
