package experiment

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
	loader "github.com/skep-dev/skep/load"
	"github.com/skep-dev/skep/scale/sim"
)

// outcome is what a policy came to in one run, live or simulated.
type outcome struct {
	policy, start string
	calls, lost   int64
	starts        int64   // 0: not known
	cold          float64 // share of calls
	p99, p999     float64 // slowdown
	mib           float64 // held, in the mean
	coldMS        float64 // median of what cold calls waited for their start; 0: not known
	part          float64 // of what the base of the same world holds
}

// Worlds are where policies were run.
const (
	worldLarge = "large"
	worldLive  = "live"
	worldTwin  = "twin" // simulated as the live one, starts as measured alone
	worldOwn   = "own"  // the same with the live run's own starts
)

// outcomes are those of a world and a start, "" for any, in the order in which they were measured.
func outcomes(all []Sample, world, start string) (out []outcome) {
	prefix := map[string]string{worldLarge: largePart, worldLive: livePart, worldTwin: twinPart, worldOwn: twinPart}[world]
	for _, run := range distinct(all, func(s Sample) int { return s.Run }) {
		first := len(out)
		for _, v := range variantsOf(all) {
			text, ok := strings.CutPrefix(v, prefix)
			policy, how, _ := strings.Cut(text, " ")
			if !ok || start != "" && how != start {
				continue
			}
			of := where(all, func(s Sample) bool { return s.Variant == v && s.Run == run && s.Scaled != nil })
			if world == worldLive {
				if len(of) > 0 {
					out = append(out, liveOutcome(of, policy, how, stat.Median(warmOf(all, run))))
				}
				continue
			}
			for _, s := range of {
				if r := s.Scaled.Result; r != nil && s.Scaled.Own == (world == worldOwn) {
					out = append(out, simulated(r))
				}
			}
		}
		relate(out[first:], world)
	}
	return out
}

func simulated(r *sim.Result) outcome {
	o := outcome{policy: r.Policy, start: r.Start, calls: r.Calls, lost: r.Lost, starts: r.Starts, cold: r.ColdPart, p99: r.Slowdown.P99, p999: r.Slowdown.P999, mib: r.Memory.MeanMiB}
	if r.NodeMiB > 0 {
		o.policy += fmt.Sprintf(" in %s GiB", number(float64(r.NodeMiB)/1024))
	}
	return o
}

// liveOutcome counts a live run. A call's slowdown is its latency over what it is to run for
// and what a warm call takes that is alone, in seconds.
func liveOutcome(of []Sample, policy, start string, warm float64) outcome {
	var calls []loader.Sample
	var held []loader.Memory
	for _, s := range of {
		if c := s.Scaled.Call; c != nil {
			calls = append(calls, *c)
		}
		if m := s.Scaled.Held; m != nil {
			held = append(held, *m)
		}
	}
	var slowdown []float64
	for _, c := range calls {
		if c.Lost == "" {
			slowdown = append(slowdown, c.Latency.Seconds()/(c.Took.Seconds()+max(warm, 1e-3)))
		}
	}
	slices.Sort(slowdown)
	r, slow := loader.Of(calls, held), sim.Distribution(slowdown)
	return outcome{policy: policy, start: start, calls: int64(r.Done), lost: int64(r.Lost), cold: r.ColdPart, p99: slow.At(0.99), p999: slow.At(0.999), mib: r.MemoryMean,
		coldMS: 1000 * ownStarts(calls, warm).At(0.5)}
}

// relate sets what outcomes of one world and run hold of what the base does with starts by
// stream.
func relate(out []outcome, world string) {
	for i := range out {
		b := slices.IndexFunc(out, func(o outcome) bool {
			return o.start == "stream" && kindOf(o.policy) == "fixed" && (world != worldLarge || o.policy == scalingBase)
		})
		if b >= 0 && out[b].mib > 0 {
			out[i].part = out[i].mib / out[b].mib
		}
	}
}

func showScaling(all []Sample) Section {
	var s Section
	large := outcomes(all, worldLarge, "")
	s.Charts = append(scalingFigures(all), liveFigures(all)...)
	s.Tables = []Table{scalingTable(large), liveTable(all), costsTable(all)}
	s.Findings = append(scalingFindings(large), liveFindings(all)...)
	s.Caveats = []string{
		"Live calls wait for as long as the trace says and take no processor time: what contends are starts. A policy's own times pass as fast live as the trace's; what starts take does not, so that live costs more to be cold than at large.",
		"greedy-dual ends instances when memory is short. Live it is not: it keeps all.",
		"Memory is what guests have, whether they have touched it or not.",
	}
	return s
}

// scalingFigures are every policy at large, and live, by cold share and by tail; and the
// starts beside each other.
func scalingFigures(all []Sample) []chart.Chart {
	const of = "At large: simulated, a line for each policy, with its parameters varied; diamonds: live on this machine. Starts by stream. Memory is relative to that of fixed with ten minutes, live with as much of its trace's time."
	cold := &chart.Lines{Info: chart.Info{Name: "scaling-cold", Title: "Cold starts against memory held", Caption: of},
		XLabel: "memory held, times that of fixed:keep-alive=10m", YLabel: "cold, % of calls", XLog: true, YLog: true}
	tail := &chart.Lines{Info: chart.Info{Name: "scaling-tail", Title: "Tail against memory held", Caption: of},
		XLabel: "memory held, times that of fixed:keep-alive=10m", YLabel: "slowdown, 99th percentile", XLog: true, YLog: true}
	add := func(out []outcome, live bool) {
		for _, kind := range kindsOf(out) {
			c := chart.Series{Name: kind, Ink: policyInk(kind), Marks: live, Silent: live}
			t := c
			for _, o := range ofKind(out, kind) {
				if o.part > 0 {
					c.Points = append(c.Points, chart.NewXY(o.part, []float64{100 * o.cold}))
					t.Points = append(t.Points, chart.NewXY(o.part, []float64{o.p99}))
				}
			}
			cold.Series, tail.Series = append(cold.Series, c), append(tail.Series, t)
		}
	}
	add(outcomes(all, worldLarge, "stream"), false)
	if live := outcomes(all, worldLive, "stream"); len(live) > 0 {
		add(live, true)
		key := chart.Series{Name: "live", Ink: chart.Muted, Marks: true}
		cold.Series, tail.Series = append(cold.Series, key), append(tail.Series, key)
	}
	starts := &chart.Lines{Info: chart.Info{Name: "scaling-starts", Title: "Tail against memory held, by what a start takes",
		Caption: "At large, simulated: fixed for a time (a line) and break-even (dashed), with that time and the price varied. Cold page cache."},
		XLabel: "memory held in the mean, GiB", YLabel: "slowdown, 99th percentile", XLog: true, YLog: true}
	for _, start := range scalingStarts {
		out := outcomes(all, worldLarge, start)
		for _, kind := range []string{"fixed", "break-even"} {
			line := chart.Series{Name: start, Ink: chart.PolicyInk(start), Dashed: kind == "break-even", Silent: kind == "break-even"}
			for _, o := range ofKind(out, kind) {
				line.Points = append(line.Points, chart.NewXY(o.mib/1024, []float64{o.p99}))
			}
			if len(line.Points) > 0 {
				starts.Series = append(starts.Series, line)
			}
		}
	}
	var charts []chart.Chart
	for _, c := range []*chart.Lines{cold, tail, starts} {
		if len(c.Series) > 0 {
			c.XTicks = decades(c)
			charts = append(charts, c)
		}
	}
	return charts
}

// decades are ticks of a logarithmic axis for what is on it.
func decades(c *chart.Lines) (ticks []float64) {
	lo, hi := math.Inf(1), 0.0
	for _, s := range c.Series {
		for _, p := range s.Points {
			lo, hi = min(lo, p.X), max(hi, p.X)
		}
	}
	marks := []float64{1, 2, 5}
	if hi > 300*lo {
		marks = marks[:1]
	}
	for e := math.Floor(math.Log10(lo)); hi > 0 && e <= math.Log10(hi); e++ {
		for _, m := range marks {
			if v := m * math.Pow(10, e); v >= lo && v <= hi {
				ticks = append(ticks, v)
			}
		}
	}
	return ticks
}

// kindsOf are the kinds of policies in the order in which they come.
func kindsOf(out []outcome) (kinds []string) {
	for _, o := range out {
		if k := kindOf(o.policy); !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// ofKind are the outcomes of a kind of policy, by what they hold.
func ofKind(out []outcome, kind string) []outcome {
	out = slices.DeleteFunc(slices.Clone(out), func(o outcome) bool { return kindOf(o.policy) != kind })
	slices.SortStableFunc(out, func(a, b outcome) int { return cmp.Compare(a.mib, b.mib) })
	return out
}

// liveFigures have live and simulated beside each other, for each policy and start.
func liveFigures(all []Sample) []chart.Chart {
	live, twin, own := outcomes(all, worldLive, ""), outcomes(all, worldTwin, ""), outcomes(all, worldOwn, "")
	if len(live) == 0 || len(twin) == 0 {
		return nil
	}
	keys := []chart.Key{{Name: "live", Ink: chart.Orange}, {Name: "simulated, starts as measured alone", Ink: chart.Grey}, {Name: "simulated, the live run's own starts", Ink: chart.Sky}}
	var charts []chart.Chart
	for _, f := range []struct {
		name, title, unit string
		log               bool
		of                func(outcome) float64
	}{
		{"scaling-live-cold", "Live and simulated: cold starts, % of calls", "%", false, func(o outcome) float64 { return 100 * o.cold }},
		{"scaling-live-tail", "Live and simulated: 99th percentile of the slowdown", "times", true, func(o outcome) float64 { return o.p99 }},
		{"scaling-live-memory", "Live and simulated: memory held, MiB in the mean", "MiB", false, func(o outcome) float64 { return o.mib }},
	} {
		c := &chart.Bars{Info: chart.Info{Name: f.name, Title: f.title, Caption: "The same calls, live on this machine and in virtual time."}, Unit: f.unit, Log: f.log, Keys: keys}
		for _, o := range distinctVariants(live) {
			g := chart.Group{Label: o.policy + " " + o.start}
			for i, out := range [][]outcome{live, twin, own} {
				if v := valuesOf(out, o, f.of); len(v) > 0 {
					g.Bars = append(g.Bars, chart.NewBar(keys[i].Name, keys[i].Ink, v, 0))
				}
			}
			c.Groups = append(c.Groups, g)
		}
		charts = append(charts, c)
	}
	return charts
}

// distinctVariants has one outcome for each policy and start.
func distinctVariants(out []outcome) (one []outcome) {
	for _, o := range out {
		if !slices.ContainsFunc(one, func(p outcome) bool { return p.policy == o.policy && p.start == o.start }) {
			one = append(one, o)
		}
	}
	return one
}

// valuesOf are those of one policy and start over runs.
func valuesOf(out []outcome, like outcome, f func(outcome) float64) (v []float64) {
	for _, o := range out {
		if o.policy == like.policy && o.start == like.start {
			v = append(v, f(o))
		}
	}
	return v
}

func scalingTable(large []outcome) Table {
	t := Table{Name: "scaling", Head: []string{"policy, simulated", "start", "calls", "cold %", "slowdown p99", "p99.9", "memory GiB", "times fixed 10m", "starts", "lost"}}
	for _, o := range large {
		t.Rows = append(t.Rows, []string{o.policy, o.start, number(float64(o.calls)), number(100 * o.cold), number(o.p99), number(o.p999), number(o.mib / 1024), number(o.part), number(float64(o.starts)), itoa(int(o.lost))})
	}
	return t
}

func liveTable(all []Sample) Table {
	t := Table{Name: "scaling-live", Head: []string{"policy, live", "start", "calls", "lost", "cold %: live, simulated, own starts", "slowdown p99: the same", "memory MiB: the same", "a cold call's wait ms: live, alone"}}
	live, twin, own := outcomes(all, worldLive, ""), outcomes(all, worldTwin, ""), outcomes(all, worldOwn, "")
	alone := costsOf(all, inCache)
	for _, o := range distinctVariants(live) {
		three := func(f func(outcome) float64) string {
			var parts []string
			for _, out := range [][]outcome{live, twin, own} {
				text := "–"
				if v := valuesOf(out, o, f); len(v) > 0 {
					text = number(stat.Median(v))
				}
				parts = append(parts, text)
			}
			return strings.Join(parts, ", ")
		}
		calls, lost := sum(valuesOf(live, o, func(o outcome) float64 { return float64(o.calls) })), sum(valuesOf(live, o, func(o outcome) float64 { return float64(o.lost) }))
		wait := number(stat.Median(valuesOf(live, o, func(o outcome) float64 { return o.coldMS }))) + ", " + number(1000*stat.Median(alone[o.start]))
		t.Rows = append(t.Rows, []string{o.policy, o.start, number(calls), number(lost), three(func(o outcome) float64 { return 100 * o.cold }), three(func(o outcome) float64 { return o.p99 }), three(func(o outcome) float64 { return o.mib }), wait})
	}
	return t
}

func sum(v []float64) (total float64) {
	for _, x := range v {
		total += x
	}
	return total
}

// warmOf are what warm calls took in one run that were alone, in seconds.
func warmOf(all []Sample, run int) (warm []float64) {
	for _, s := range all {
		if s.Variant == costsVariant && s.Run == run && s.Record != nil && s.Record.Start == api.StartWarm {
			warm = append(warm, s.Total()/1000)
		}
	}
	return warm
}

// costsOf are, by start, how much longer each took than a warm call, in seconds.
func costsOf(all []Sample, dropped string) map[string][]float64 {
	out := map[string][]float64{}
	for _, s := range where(all, func(s Sample) bool { return s.Variant == costsVariant && s.Record != nil }) {
		if s.Cache == nil || s.Cache.Dropped != dropped {
			continue
		}
		start := string(s.Record.Start)
		if s.Record.Memory != nil && s.Record.Start == api.StartRestore {
			start = s.Record.Memory.Policy
		}
		out[start] = append(out[start], max(0, s.Total()/1000-stat.Median(warmOf(all, s.Run))))
	}
	return out
}

func costsTable(all []Sample) Table {
	t := Table{Name: "scaling-costs", Head: []string{"start", "page cache", "samples", "longer than warm, ms"}}
	for _, dropped := range distinct(all, func(s Sample) string {
		if s.Cache == nil {
			return ""
		}
		return s.Cache.Dropped
	}) {
		costs := costsOf(all, dropped)
		how := "cold"
		if dropped == inCache {
			how = "warm"
		}
		for _, start := range scalingStarts {
			var took []float64
			for _, v := range costs[start] {
				took = append(took, 1000*v)
			}
			if len(took) > 0 {
				t.Rows = append(t.Rows, []string{start, how, itoa(len(took)), span(stat.Summarize(took))})
			}
		}
	}
	return t
}

// scalingFindings say what fast starts are worth: how much memory has to be held for a tail.
func scalingFindings(large []outcome) (out []string) {
	find := func(start string) (base outcome) {
		for _, o := range large {
			if o.policy == scalingBase && o.start == start {
				base = o
			}
		}
		return base
	}
	boot := find("boot")
	if boot.mib == 0 {
		return nil
	}
	least := func(start string, tail float64) (best outcome) {
		for _, o := range large {
			if o.start == start && o.p99 <= tail && o.lost == 0 && (best.mib == 0 || o.mib < best.mib) {
				best = o
			}
		}
		return best
	}
	for _, tail := range []float64{boot.p99, find("mmap").p99, find("stream").p99} {
		var parts []string
		for _, start := range scalingStarts {
			if o := least(start, tail); o.mib > 0 {
				parts = append(parts, fmt.Sprintf("%s %s GiB (%s)", start, number(o.mib/1024), o.policy))
			} else if tail > 0 {
				parts = append(parts, start+" does not reach it under any policy here")
			}
		}
		if tail > 0 && len(parts) > 0 {
			out = append(out, fmt.Sprintf("Least memory for a 99th percentile of the slowdown of %s or less: %s.", number(tail), strings.Join(parts, ", ")))
		}
	}
	if o := least("stream", boot.p99); o.mib > 0 {
		out = append(out, fmt.Sprintf("At the tail that boots have when instances are kept for ten minutes, starts by stream hold %s of their memory.", percent(o.mib/boot.mib)))
	}
	for _, start := range []string{"boot", "stream"} {
		base, ours := find(start), outcome{}
		for _, o := range large {
			if o.policy == "break-even" && o.start == start {
				ours = o
			}
		}
		if base.mib > 0 && ours.mib > 0 {
			out = append(out, fmt.Sprintf("With starts by %s, break-even holds %s of the memory of ten minutes' keep-alive, at %s cold instead of %s and a tail of %s instead of %s.",
				start, percent(ours.mib/base.mib), percent(ours.cold), percent(base.cold), number(ours.p99), number(base.p99)))
		}
	}
	return out
}

// liveFindings say how far the simulation is from what was live, and what of that is what
// starts took.
func liveFindings(all []Sample) (out []string) {
	live, twin, own := outcomes(all, worldLive, ""), outcomes(all, worldTwin, ""), outcomes(all, worldOwn, "")
	calls, lost := int64(0), int64(0)
	for _, o := range live {
		calls, lost = calls+o.calls, lost+o.lost
	}
	if calls == 0 {
		return nil
	}
	out = append(out, fmt.Sprintf("Live, %d calls under %d policies and starts: %d lost.", calls, len(distinctVariants(live)), lost))
	alone := costsOf(all, inCache)
	var cold, memory, waits, tails, ownTails []float64
	for _, o := range distinctVariants(live) {
		one := func(out []outcome, f func(outcome) float64) float64 { return stat.Median(valuesOf(out, o, f)) }
		if len(valuesOf(twin, o, func(o outcome) float64 { return o.mib })) == 0 {
			continue
		}
		part := func(o outcome) float64 { return 100 * o.cold }
		held := func(o outcome) float64 { return o.mib }
		tail := func(o outcome) float64 { return o.p99 }
		cold = append(cold, math.Abs(one(live, part)-one(twin, part)))
		memory = append(memory, one(live, held)/max(1, one(twin, held)))
		tails = append(tails, one(live, tail)/max(1, one(twin, tail)))
		if w := one(live, func(o outcome) float64 { return o.coldMS }); w > 0 && len(alone[o.start]) > 0 {
			waits = append(waits, w/1000/stat.Median(alone[o.start]))
		}
		if v := valuesOf(own, o, tail); len(v) > 0 {
			ownTails = append(ownTails, one(live, tail)/max(1, stat.Median(v)))
		}
	}
	if len(tails) == 0 {
		return out
	}
	ends := func(v []float64) string { return between(slices.Min(v), slices.Max(v), "") }
	out = append(out, fmt.Sprintf("The simulation of the same calls differs by %s points in the share of cold calls at most, and live holds %s times the memory, with a tail %s times as long.",
		number(slices.Max(cold)), ends(memory), ends(tails)))
	if len(waits) > 0 && len(ownTails) > 0 {
		out = append(out, fmt.Sprintf("What starts took explains of it what follows: a cold call waited %s times as long live as one that was alone; beside the simulation with the live run's own starts the tail is %s times as long.",
			ends(waits), ends(ownTails)))
	}
	return out
}
