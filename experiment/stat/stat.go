// Package stat is what experiments need of statistics: medians, spread,
// bootstrap confidence intervals, and whether two sets of samples differ.
package stat

import (
	"math"
	"math/rand/v2"
	"slices"

	"golang.org/x/perf/benchmath"
)

// Summary describes samples of one quantity. The interval is that of the
// median; with fewer than MinCI samples it is the range, and Weak says so.
type Summary struct {
	N          int     `json:"n"`
	Median     float64 `json:"median"`
	Lo         float64 `json:"ci_lo"`
	Hi         float64 `json:"ci_hi"`
	P25        float64 `json:"p25"`
	P75        float64 `json:"p75"`
	Min        float64 `json:"min"`
	Max        float64 `json:"max"`
	Mean       float64 `json:"mean"`
	Outliers   int     `json:"outliers"` // beyond 1.5 interquartile ranges of the quartiles; counted, never removed
	Weak       bool    `json:"weak,omitempty"`
	Confidence float64 `json:"confidence"`
}

// MinCI is the least number of samples for which a bootstrap says anything.
const MinCI = 5

const (
	confidence = 0.95
	resamples  = 2000
)

// Summarize describes the samples, which it does not change. The bootstrap is
// seeded by their number alone, so that one set has one answer.
func Summarize(values []float64) Summary {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return Summary{Confidence: confidence, Weak: true}
	}
	s := Summary{
		N: len(v), Median: Quantile(v, 0.5), P25: Quantile(v, 0.25), P75: Quantile(v, 0.75),
		Min: v[0], Max: v[len(v)-1], Confidence: confidence, Weak: len(v) < MinCI,
	}
	for _, x := range v {
		s.Mean += x / float64(len(v))
	}
	for fence, i := 1.5*(s.P75-s.P25), 0; i < len(v); i++ {
		if v[i] < s.P25-fence || v[i] > s.P75+fence {
			s.Outliers++
		}
	}
	s.Lo, s.Hi = s.Min, s.Max
	if !s.Weak {
		s.Lo, s.Hi = bootstrap(len(v), func(pick func() int) float64 { return resampledMedian(v, pick) })
	}
	return s
}

// Quantile of sorted values, interpolated.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Median of values in any order.
func Median(values []float64) float64 { return Quantile(slices.Sorted(slices.Values(values)), 0.5) }

// GeoMean is the geometric mean of positive values; NaN of none.
func GeoMean(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sum := 0.0
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}

// bootstrap is the percentile interval of a statistic of resamples.
func bootstrap(seed int, statistic func(pick func() int) float64) (lo, hi float64) {
	rng := rand.New(rand.NewPCG(uint64(seed), 0x5eed))
	results := make([]float64, resamples)
	for i := range results {
		results[i] = statistic(func() int { return rng.IntN(math.MaxInt32) })
	}
	slices.Sort(results)
	return Quantile(results, (1-confidence)/2), Quantile(results, (1+confidence)/2)
}

func resampledMedian(v []float64, pick func() int) float64 {
	again := make([]float64, len(v))
	for i := range again {
		again[i] = v[pick()%len(v)]
	}
	return Median(again)
}

// Ratio is how much larger one thing is than another, with its interval.
type Ratio struct {
	Value  float64 `json:"ratio"`
	Lo, Hi float64
	Weak   bool `json:"weak,omitempty"` // too few samples: the interval is of the ranges
}

// Paired estimates how much larger a is than b where a[i] and b[i] belong
// together: the median of their ratios. What makes pairs differ from each other,
// as their inputs, is not in it.
func Paired(a, b []float64) Ratio {
	ratios := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	if len(ratios) == 0 {
		return Ratio{Value: math.NaN(), Lo: math.NaN(), Hi: math.NaN(), Weak: true}
	}
	s := Summarize(ratios)
	return Ratio{Value: s.Median, Lo: s.Lo, Hi: s.Hi, Weak: s.Weak}
}

// Ratios estimates how much larger a is than b: the ratio of their medians.
func Ratios(a, b []float64) Ratio {
	sa, sb := slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	if len(a) == 0 || len(b) == 0 || Median(sb) == 0 {
		return Ratio{Value: math.NaN(), Lo: math.NaN(), Hi: math.NaN(), Weak: true}
	}
	r := Ratio{Value: Median(sa) / Median(sb), Weak: min(len(a), len(b)) < MinCI}
	if r.Weak {
		r.Lo, r.Hi = sa[0]/sb[len(sb)-1], sa[len(sa)-1]/sb[0]
		return r
	}
	r.Lo, r.Hi = bootstrap(len(a)+len(b), func(pick func() int) float64 {
		return resampledMedian(sa, pick) / resampledMedian(sb, pick)
	})
	return r
}

// Comparison says whether b differs from a.
type Comparison struct {
	A, B        Summary
	Change      Ratio   // b over a
	P           float64 // Mann-Whitney: how likely such samples are if nothing changed
	Significant bool
	TooFew      bool // no such test could tell them apart at this confidence
}

// Compare tests whether two sets of samples differ, by Mann-Whitney's U.
func Compare(a, b []float64) Comparison {
	c := Comparison{A: Summarize(a), B: Summarize(b), Change: Ratios(b, a), P: math.NaN(), TooFew: min(len(a), len(b)) < 4}
	if len(a) == 0 || len(b) == 0 {
		return c
	}
	t := benchmath.DefaultThresholds
	res := benchmath.AssumeNothing.Compare(benchmath.NewSample(slices.Clone(a), &t), benchmath.NewSample(slices.Clone(b), &t))
	c.P = res.P
	c.Significant = !c.TooFew && res.P < res.Alpha
	return c
}
