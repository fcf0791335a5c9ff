package experiment

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// Of are the samples of an experiment.
func (d *Data) Of(e *Experiment) []Sample {
	return where(d.Samples, func(s Sample) bool { return s.Experiment == e.data() })
}

func where(all []Sample, keep func(Sample) bool) []Sample {
	var out []Sample
	for _, s := range all {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// pick are the samples of a function and a variant; "" is any.
func pick(all []Sample, function, variant string) []Sample {
	return where(all, func(s Sample) bool {
		return (function == "" || s.Function == function) && (variant == "" || s.Variant == variant)
	})
}

// distinct values in the order of their first sample.
func distinct[T comparable](all []Sample, of func(Sample) T) []T {
	var out []T
	for _, s := range all {
		if v := of(s); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func functionsOf(all []Sample) []string {
	return distinct(all, func(s Sample) string { return s.Function })
}
func variantsOf(all []Sample) []string {
	return distinct(all, func(s Sample) string { return s.Variant })
}

func values(all []Sample, of func(Sample) float64) []float64 {
	out := make([]float64, len(all))
	for i, s := range all {
		out[i] = of(s)
	}
	return out
}

func totals(all []Sample) []float64     { return values(all, Sample.Total) }
func medianFaults(all []Sample) float64 { return stat.Median(values(all, Sample.Faults)) }
func summary(all []Sample) stat.Summary { return stat.Summarize(totals(all)) }

// ratio is how much longer the invocations of a took than those of b, in pairs of
// one run: these have the same input and are measured next to each other, so that
// neither the inputs nor the machine's drift are in it.
func ratio(a, b []Sample) stat.Ratio {
	var x, y []float64
	for _, s := range a {
		for _, o := range b {
			if s.Function == o.Function && s.Run == o.Run {
				x, y = append(x, s.Total()), append(y, o.Total())
			}
		}
	}
	return stat.Paired(x, y)
}

func number(v float64) string      { return chart.Number(v) }
func percent(share float64) string { return number(100*share) + "%" }
func times(v float64) string       { return number(v) + "×" }
func paperNumber(v float64) string {
	if v == 0 {
		return ""
	}
	return number(v)
}

// span writes a summary as "median [lo–hi]".
func span(s stat.Summary) string {
	if s.N == 0 {
		return "–"
	}
	if s.N == 1 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s [%s–%s]", number(s.Median), number(s.Lo), number(s.Hi))
}

// stage is a part of a cold start as the paper divides it.
type stage struct {
	name   string
	ink    chart.Ink
	phases []string // of api.Phases
}

var stages = []stage{
	{"load VMM", chart.Sky, []string{"queue", "slot", "spawn", "load", "boot", "init"}},
	{"working set", chart.Blue, []string{"install"}},
	{"connection", chart.Yellow, []string{"resume", "clone", "connect"}},
	{"processing", chart.Orange, []string{"process", "stream"}},
}

func stageKeys() []chart.Key {
	var keys []chart.Key
	for _, s := range stages {
		keys = append(keys, chart.Key{Name: s.name, Ink: s.ink})
	}
	return keys
}

// stageTime is what a stage took in one invocation, in milliseconds.
func stageTime(s Sample, st stage) float64 {
	if s.Record == nil {
		return 0
	}
	sum := 0.0
	p := s.Record.Phases
	p.Each(func(name string, d time.Duration) {
		if slices.Contains(st.phases, name) {
			sum += ms(d)
		}
	})
	return sum
}

// stageBar is a bar of the stages' medians, scaled to the median of the totals.
func stageBar(label string, all []Sample, paper float64) chart.Bar {
	b := chart.Bar{Label: label, Summary: summary(all), Samples: totals(all), Paper: paper}
	sum := 0.0
	for _, st := range stages {
		v := stat.Median(values(all, func(s Sample) float64 { return stageTime(s, st) }))
		b.Parts = append(b.Parts, chart.Part{Name: st.name, Value: v, Ink: st.ink})
		sum += v
	}
	for i := range b.Parts {
		if sum > 0 {
			b.Parts[i].Value *= b.Summary.Median / sum
		}
	}
	return b
}

const stageCaption = "Parts are medians, scaled so that they add up to the median of the whole."

func itoa(n int) string { return strconv.Itoa(n) }

// between writes a range, or its one value.
func between(lo, hi float64, unit string) string {
	a, b := number(lo), number(hi)
	if a == b {
		return a + unit
	}
	return a + "–" + b + unit
}
