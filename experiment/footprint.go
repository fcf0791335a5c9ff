package experiment

import (
	"context"
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/internal/smaps"
)

// footprint is the paper's figure 4: guest memory after a boot and one call,
// beside that after a restore and one call.
var footprint = &Experiment{
	Name: "footprint", Figure: "Figure 4", Title: "Memory of a booted and of a restored instance",
	Runs:     3,
	Question: "How much of its memory does a function need for one invocation, compared with what booting it touched?",
	Points: func(set Settings) []Point {
		points := turns(set, set.Functions, []string{"booted", "restored"})
		for i := range points {
			points[i].Seconds += 4 // until the one before is gone
			if points[i].Variant == "booted" {
				points[i].Seconds += 10
			}
		}
		return points
	},
	Measure: measureFootprint,
	Show:    showFootprint,
}

// measureFootprint lets a function start by itself, as a boot or under lazy: an
// instance that is asked for by kind or policy ends with the response.
func measureFootprint(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "-"+p.Variant, func(f *api.Function) {
		f.KeepAlive, f.MemoryPolicy = api.Duration(3*time.Second), "lazy"
		f.Snapshot.Off = p.Variant == "booted"
	})
	if err != nil {
		return nil, err
	}
	if err := l.Quiet(ctx, name); err != nil {
		return nil, err
	}
	s, err := l.invoke(ctx, name, invocation{input: p.Input})
	if err == nil {
		s.Guest, err = l.footprint(ctx, name)
	}
	return one(s, err)
}

// footprint looks at the one instance of a function, which is idle.
func (l *Lab) footprint(ctx context.Context, name string) (*Footprint, error) {
	list, err := l.Client().Instances(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 || list[0].PID == 0 {
		return nil, fmt.Errorf("looking at the memory of %s: it has %d instances", name, len(list))
	}
	return readFootprint(list[0].PID, l.memory[name])
}

// readFootprint finds the guest's memory among a VMM's mappings by its size.
func readFootprint(pid int, size int64) (*Footprint, error) {
	all, err := smaps.Of(pid)
	if err != nil {
		return nil, err
	}
	var fp Footprint
	found := false
	for _, m := range all {
		fp.VMM += m.RSS
		if m.Size == size {
			fp.Guest += m.RSS
			found = true
		}
	}
	if !found {
		return nil, fmt.Errorf("process %d has no mapping of %d bytes: its guest's memory was not found", pid, size)
	}
	return &fp, nil
}

func showFootprint(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "fig4-footprint", Title: "Resident guest memory after one invocation",
		Caption: "Restored: under lazy, so that only pages that the guest asked for are there."},
		Unit: "MB", Keys: []chart.Key{{Name: "booted", Ink: chart.Grey}, {Name: "restored", Ink: chart.Blue}}}
	t := Table{Name: "fig4-footprint", Head: []string{"function", "booted MB", "restored MB", "restored / booted", "VMM beside it MB", "paper booted", "paper restored"}}
	mb := func(s Sample) float64 {
		if s.Guest == nil {
			return 0
		}
		return float64(s.Guest.Guest) / 1e6
	}
	var shares []float64
	for _, f := range functionsOf(all) {
		booted, restored := pick(all, f, "booted"), pick(all, f, "restored")
		b, r, paper := values(booted, mb), values(restored, mb), inPaper(f)
		c.Groups = append(c.Groups, chart.Group{Label: f, Bars: []chart.Bar{
			chart.NewBar("booted", chart.Grey, b, paper.booted), chart.NewBar("restored", chart.Blue, r, paper.restored)}})
		share := stat.Median(r) / stat.Median(b)
		shares = append(shares, share)
		vmm := stat.Median(values(restored, func(s Sample) float64 { return float64(s.Guest.VMM-s.Guest.Guest) / 1e6 }))
		t.Rows = append(t.Rows, []string{f, span(stat.Summarize(b)), span(stat.Summarize(r)), percent(share), number(vmm),
			paperNumber(paper.booted), paperNumber(paper.restored)})
	}
	low, high := extremes(shares)
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("A restored instance needs %s of what a booted one has touched (paper: 3–39%%).", between(100*low, 100*high, "%")),
	}}
}
