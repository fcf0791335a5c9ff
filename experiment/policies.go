package experiment

import (
	"fmt"
	"slices"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// policies is the paper's figure 8: vanilla and REAP for all functions, and ours.
var policies = &Experiment{
	Name: "policies", Figure: "Figure 8", Title: "All functions, vanilla against REAP and stream",
	Question: "How much faster is a cold start with a prefetched working set, over all functions and with inputs that were not recorded?",
	Points: func(set Settings) []Point {
		variants := set.Policies
		if len(variants) == 0 {
			variants = []string{"mmap", "reap", "stream", "resident"}
		}
		return turns(set, set.Functions, variants)
	},
	Measure: measureCold,
	Show:    showPolicies,
}

func showPolicies(all []Sample) Section {
	variants := variantsOf(all)
	abs := &chart.Bars{Info: chart.Info{Name: "fig8-policies", Title: "Cold start by function and policy",
		Caption: "Logarithmic. The paper's values are of its mmap and reap."}, Unit: "ms", Log: true}
	gain := &chart.Bars{Info: chart.Info{Name: "fig8-speedup", Title: "How many times faster than mmap",
		Caption: "Medians of the ratios within a run, whose starts have the same input. resident is the floor that a policy can approach, not a policy to use: all of memory is there before the vCPUs run, and the time to read it counts."}, Unit: "×", Mark: 1}
	t := Table{Name: "fig8-policies", Head: []string{"function"}}
	for _, v := range variants {
		k := chart.Key{Name: v, Ink: chart.PolicyInk(v)}
		abs.Keys = append(abs.Keys, k)
		if v != "mmap" {
			gain.Keys = append(gain.Keys, k)
		}
		t.Head = append(t.Head, v+" ms")
	}
	t.Head = append(t.Head, "reap gains", "stream gains", "faults left under reap", "under stream", "paper mmap", "paper reap", "paper gain")
	ratios := map[string][]float64{}
	var gone []float64
	for _, f := range functionsOf(all) {
		paper := inPaper(f)
		row := []string{f}
		a, g := chart.Group{Label: f}, chart.Group{Label: f}
		base := pick(all, f, "mmap")
		for _, v := range variants {
			of := pick(all, f, v)
			row = append(row, span(summary(of)))
			a.Bars = append(a.Bars, chart.NewBar(v, chart.PolicyInk(v), totals(of), map[string]float64{"mmap": paper.vanilla, "reap": paper.reap}[v]))
			if r := ratio(base, of); v != "mmap" && r.Value > 0 {
				ratios[v] = append(ratios[v], r.Value)
				b := chart.Bar{Label: v, Parts: []chart.Part{{Name: v, Value: r.Value, Ink: chart.PolicyInk(v)}}, Summary: stat.Summary{N: len(of), Median: r.Value, Lo: r.Lo, Hi: r.Hi, Weak: r.Weak}}
				if v == "reap" && paper.reap > 0 {
					b.Paper = paper.vanilla / paper.reap
				}
				g.Bars = append(g.Bars, b)
			}
		}
		abs.Groups, gain.Groups = append(abs.Groups, a), append(gain.Groups, g)
		left := faultsLeft(pick(all, f, "reap"))
		gone = append(gone, 1-left)
		t.Rows = append(t.Rows, append(row, gainOf(ratios, "reap"), gainOf(ratios, "stream"), percent(left), percent(faultsLeft(pick(all, f, "stream"))),
			paperNumber(paper.vanilla), paperNumber(paper.reap), paperGain(paper)))
	}
	sec := Section{Charts: []chart.Chart{gain, abs}, Tables: []Table{t}}
	for _, v := range []string{"reap", "stream"} {
		if lo, hi := extremes(ratios[v]); len(ratios[v]) > 0 {
			paper := ""
			if v == "reap" {
				paper = " (paper: 3.7×, from 1.04 to 9.7)"
			}
			sec.Findings = append(sec.Findings, fmt.Sprintf("%s is %s as fast as mmap in the geometric mean%s%s.", v, times(stat.GeoMean(ratios[v])), spread(lo, hi), paper))
		}
	}
	if slices.Contains(variants, "reap") {
		sec.Findings = append(sec.Findings, fmt.Sprintf("Under reap %s of the page faults are gone, in the median over functions (paper: 97%%).", percent(stat.Median(gone))))
	}
	return sec
}

// gainOf is the last ratio of a policy, as the table has it.
func gainOf(ratios map[string][]float64, v string) string {
	if r := ratios[v]; len(r) > 0 {
		return times(r[len(r)-1])
	}
	return "–"
}

func paperGain(p published) string {
	if p.reap == 0 {
		return ""
	}
	return times(p.vanilla / p.reap)
}

// faultsLeft is the share of an invocation's pages that had to be served on
// demand: of those prefetched and those served.
func faultsLeft(of []Sample) float64 {
	return stat.Median(values(of, func(s Sample) float64 {
		if s.Record == nil || s.Record.Memory == nil {
			return 0
		}
		m := s.Record.Memory
		return float64(m.Faults) / max(float64(m.Faults+m.Prefetched), 1)
	}))
}

// spread says from where to where values go, if they do.
func spread(lo, hi float64) string {
	if number(lo) == number(hi) {
		return ""
	}
	return ", from " + number(lo) + " to " + number(hi)
}
