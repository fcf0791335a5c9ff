package experiment

import (
	"fmt"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/memory/replay"
)

// composed says what of these figures is measured and what is put together.
const composed = "Composed, no instruction emulated. From real microVMs: which pages a start touches, in which order, and how long the VMM takes until memory can be filled. " +
	"From this machine: the function's own work, by warm calls of its server in the image's own root. Replayed, from a cold page cache: from the moment at which the VMM would be there a process " +
	"touches the pages and spends the own work between them, served as a VM is, or by the kernel. Left out: what the guest's kernel and agent compute to wake up."

func showNative(all []Sample) Section {
	sec := Section{Caveats: []string{composed,
		"The function's own work is spread over the touches as the guest's time was, under emulation. A cold guest's own work is more than a warm server's: caches and TLBs are cold, and system calls go to another kernel. Both are the same under every policy.",
		"ready process: a VMM's process waits, as for the functions that a node started last, so the phase spawn is left out for policies that serve faults. Under mmap none can wait; their gains are over mmap with spawn.",
	}}
	plain := where(all, func(s Sample) bool { _, kind := nativeVariant(s.Variant); return kind == nativePlain })
	sec.Charts = append(sec.Charts, nativeGains(all, "fig8-native-speedup", "How many times faster than mmap, at native speed",
		"Medians of the ratios within a run; the paper's value is REAP's gain over its vanilla snapshots. ready process: where a VMM's process waits, which only policies that serve faults can have. "+composed,
		[]string{"reap", "stream", "reap" + nativeReady, "stream" + nativeReady}, "mmap", true), nativeParts(plain))
	sec.Tables = append(sec.Tables, nativeTable(all), nativePolicies(plain))
	sec.Findings = append(sec.Findings, gainFinding(all, "", "", "a cold start", "paper's REAP: 3.7×, from 1.04 to 9.7"),
		gainFinding(all, nativeReady, "", "a cold start for which a VMM's process waits, over a mapped one, for which none can,", ""))
	for _, k := range []struct{ kind, name, title, caption, what, paper string }{
		{nativeOther, "sec7-native-inputs", "How many times faster than mmap with an input that was not recorded", "The same, with the touches of inputs 2, 3 and 4 in turn and the working set of the first. Nothing is learned between runs.", "a cold start with another input than the recorded one", ""},
		{nativeSlow, "sec6-native-slow", "How many times faster than mmap from a slow disk", "The same as the first figure.", "a cold start from a slow disk", "paper's REAP: 5.4×"},
	} {
		of := where(all, func(s Sample) bool { _, kind := nativeVariant(s.Variant); return kind == k.kind })
		if len(of) == 0 {
			continue
		}
		if s := of[0].Storage; s != nil {
			k.caption = fmt.Sprintf("Reads limited to %s MB/s and %d a second by %s.", number(float64(s.BPS)/1e6), s.IOPS, s.Method)
		}
		sec.Charts = append(sec.Charts, nativeGains(all, k.name, k.title, k.caption, []string{"reap" + k.kind, "stream" + k.kind}, "mmap"+k.kind, false))
		sec.Findings = append(sec.Findings, gainFinding(all, k.kind, k.kind, k.what, k.paper))
	}
	alone := where(all, func(s Sample) bool { return len(s.Floors) > 0 })
	if len(alone) > 0 {
		c, t, finding := nativeFloors(alone)
		sec.Charts, sec.Tables, sec.Findings = append(sec.Charts, c), append(sec.Tables, t), append(sec.Findings, finding)
	}
	return sec
}

// gainsOver are the ratios of a variant to another, one of each function.
func gainsOver(all []Sample, base, variant string) []float64 {
	var out []float64
	for _, f := range functionsOf(all) {
		if r := ratio(pick(all, f, base), pick(all, f, variant)); r.Value > 0 {
			out = append(out, r.Value)
		}
	}
	return out
}

func gainFinding(all []Sample, kind, baseKind, what, paper string) string {
	say := func(policy string) string {
		gains := gainsOver(all, "mmap"+baseKind, policy+kind)
		lo, hi := extremes(gains)
		return fmt.Sprintf("%s%s", times(stat.GeoMean(gains)), spread(lo, hi))
	}
	if paper != "" {
		paper = " (" + paper + ")"
	}
	return fmt.Sprintf("At native speed %s is %s as fast under reap as under mmap in the geometric mean, and %s under stream%s.", what, say("reap"), say("stream"), paper)
}

// variantInk is the colour of the policy of a native variant.
func variantInk(v string) chart.Ink {
	policy, kind := nativeVariant(v)
	if kind == nativeReady {
		return map[string]chart.Ink{"reap": chart.Sky, "stream": chart.Yellow}[policy]
	}
	return chart.PolicyInk(policy)
}

func nativeGains(all []Sample, name, title, caption string, variants []string, base string, paper bool) chart.Chart {
	c := &chart.Bars{Info: chart.Info{Name: name, Title: title, Caption: caption}, Unit: "×", Mark: 1}
	for _, v := range variants {
		c.Keys = append(c.Keys, chart.Key{Name: v, Ink: variantInk(v)})
	}
	for _, f := range functionsOf(all) {
		g := chart.Group{Label: f}
		for _, v := range variants {
			r := ratio(pick(all, f, base), pick(all, f, v))
			if !(r.Value > 0) {
				continue
			}
			b := chart.Bar{Label: v, Parts: []chart.Part{{Name: v, Value: r.Value, Ink: variantInk(v)}},
				Summary: stat.Summary{N: len(pick(all, f, v)), Median: r.Value, Lo: r.Lo, Hi: r.Hi, Weak: r.Weak}}
			if p := inPaper(f); paper && v == "reap" && p.reap > 0 {
				b.Paper = p.vanilla / p.reap
			}
			g.Bars = append(g.Bars, b)
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

// nativeParts draws what a cold start is made of.
func nativeParts(plain []Sample) chart.Chart {
	c := &chart.Bars{Info: chart.Info{Name: "fig8-native", Title: "A cold start at native speed, by function and policy",
		Caption: composed + " Medians; waiting for memory is the rest of the total."},
		Unit: "ms", Keys: []chart.Key{{Name: "VMM start, of microVMs", Ink: chart.Sky}, {Name: "own work, on this machine", Ink: chart.Yellow}, {Name: "waiting for memory, replayed", Ink: chart.Orange}}}
	for _, f := range functionsOf(plain) {
		g := chart.Group{Label: f}
		for _, v := range []string{"mmap", "reap", "stream"} {
			of := pick(plain, f, v)
			if len(of) == 0 {
				continue
			}
			start := stat.Median(values(of, func(s Sample) float64 { return ms(s.Native.VMM) }))
			work := stat.Median(values(of, func(s Sample) float64 { return ms(s.Native.Work) }))
			b := chart.Bar{Label: v, Summary: summary(of), Samples: totals(of)}
			b.Parts = []chart.Part{{Name: "VMM start", Value: start, Ink: chart.Sky}, {Name: "own work", Value: work, Ink: chart.Yellow},
				{Name: "waiting for memory", Value: max(b.Summary.Median-start-work, 0), Ink: chart.Orange}}
			g.Bars = append(g.Bars, b)
		}
		c.Groups = append(c.Groups, g)
	}
	return c
}

func nativeTable(all []Sample) Table {
	t := Table{Name: "fig8-native", Head: []string{"function", "pages", "VMM start ms", "own work ms", "mmap ms", "reap ms", "stream ms", "reap gains", "stream gains",
		"stream gains, ready process", "reap gains, other input", "stream gains, other input", "reap gains, slow disk", "stream gains, slow disk", "paper mmap", "paper reap", "paper gain"}}
	gain := func(f, base, v string) string {
		if r := ratio(pick(all, f, base), pick(all, f, v)); r.Value > 0 {
			return times(r.Value)
		}
		return "–"
	}
	for _, f := range functionsOf(all) {
		of, paper := pick(all, f, "stream"), inPaper(f)
		med := func(g func(Sample) float64) string { return number(stat.Median(values(of, g))) }
		row := []string{f, med(func(s Sample) float64 { return float64(s.Replay.Pages) }), med(func(s Sample) float64 { return ms(s.Native.VMM) }), med(func(s Sample) float64 { return ms(s.Native.Work) })}
		for _, v := range []string{"mmap", "reap", "stream"} {
			row = append(row, span(summary(pick(all, f, v))))
		}
		row = append(row, gain(f, "mmap", "reap"), gain(f, "mmap", "stream"), gain(f, "mmap", "stream"+nativeReady))
		for _, kind := range []string{nativeOther, nativeSlow} {
			row = append(row, gain(f, "mmap"+kind, "reap"+kind), gain(f, "mmap"+kind, "stream"+kind))
		}
		t.Rows = append(t.Rows, append(row, paperNumber(paper.vanilla), paperNumber(paper.reap), paperGain(paper)))
	}
	return t
}

// nativePolicies has every policy.
func nativePolicies(plain []Sample) Table {
	t := Table{Name: "fig8-native-policies", Head: []string{"function"}}
	variants := variantsOf(plain)
	for _, v := range variants {
		t.Head = append(t.Head, v+" ms")
	}
	for _, f := range functionsOf(plain) {
		row := []string{f}
		for _, v := range variants {
			row = append(row, span(summary(pick(plain, f, v))))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// nativeFloors compares the memory path alone with what the machine can do.
func nativeFloors(alone []Sample) (chart.Chart, Table, string) {
	c := &chart.Bars{Info: chart.Info{Name: "native-floors", Title: "The memory path alone, as a multiple of its floor",
		Caption: "Every page of the trace is touched, one after the other and without pauses, from a cold page cache; no VMM start, no own work. The floor is the longer of two that are measured just before: reading the working set past the page cache, and installing its runs from memory by a bare loop. Who reads first and installs then, as reap does, cannot come near it."},
		Unit: "×", Mark: 1}
	for _, v := range []string{"mmap", "reap", "stream"} {
		c.Keys = append(c.Keys, chart.Key{Name: v, Ink: chart.PolicyInk(v)})
	}
	t := Table{Name: "native-floors", Head: []string{"function", "mmap ms", "reap ms", "stream ms", "floor ms", "reading ms", "installing ms", "mmap / floor", "reap / floor", "stream / floor"}}
	means := map[string][]float64{}
	for _, f := range functionsOf(alone) {
		g := chart.Group{Label: f}
		var took, ratios []string
		for _, v := range []string{"mmap", "reap", "stream"} {
			of := pick(alone, f, v+nativeAlone)
			r := values(of, func(s Sample) float64 {
				return s.Total() / max(floorOf(s, replay.FloorDisk), floorOf(s, replay.FloorInstall))
			})
			took, ratios = append(took, span(summary(of))), append(ratios, times(stat.Median(r)))
			if len(of) > 0 {
				means[v] = append(means[v], stat.Median(r))
				g.Bars = append(g.Bars, chart.NewBar(v, chart.PolicyInk(v), r, 0))
			}
		}
		c.Groups = append(c.Groups, g)
		of := pick(alone, f, "")
		med := func(h func(Sample) float64) string { return number(stat.Median(values(of, h))) }
		t.Rows = append(t.Rows, append(append(append([]string{f}, took...),
			med(func(s Sample) float64 { return max(floorOf(s, replay.FloorDisk), floorOf(s, replay.FloorInstall)) }),
			med(func(s Sample) float64 { return floorOf(s, replay.FloorDisk) }), med(func(s Sample) float64 { return floorOf(s, replay.FloorInstall) })), ratios...))
	}
	return c, t, fmt.Sprintf("The memory path alone takes %s as long as its floor under stream in the geometric mean, %s under reap, and %s under mmap.",
		times(stat.GeoMean(means["stream"])), times(stat.GeoMean(means["reap"])), times(stat.GeoMean(means["mmap"])))
}

// floorOf is a floor that was measured beside a sample, in milliseconds.
func floorOf(s Sample, name string) float64 {
	for _, f := range s.Floors {
		if f.Name == name {
			return ms(f.Total)
		}
	}
	return 0
}
