package trace

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sample is a small trace that stands for a large one, as invitro's sampler makes
// (Ustiugov et al., "Enabling In-Vitro Serverless Systems Research", 2023): n of its
// functions, of several random choices those whose calls, durations and memory are
// distributed most like those of all. Functions are chosen across the range of calls,
// so that the few that make most of the load are neither missed nor all there are.
// Distance is how far it is from the whole: the mean of the three Wasserstein distances,
// of logarithms to base 10.
func (t *Trace) Sample(n int, seed uint64) (sample *Trace, distance float64, err error) {
	called := make([]int, 0, len(t.Functions))
	for i := range t.Functions {
		if t.Functions[i].Calls > 0 {
			called = append(called, i)
		}
	}
	if n < 1 || n > len(called) {
		return nil, 0, fmt.Errorf("a sample of %d functions: want 1 to %d, as many as are called in the trace", n, len(called))
	}
	slices.SortStableFunc(called, func(a, b int) int {
		return int(max(-1, min(1, t.Functions[a].Calls-t.Functions[b].Calls)))
	})
	whole := t.features(called)
	r := rand.New(rand.NewPCG(seed, 1))
	best, distance := []int(nil), math.Inf(1)
	for range samples {
		choice := make([]int, n)
		step := float64(len(called)) / float64(n)
		for i := range choice { // one of each stratum
			lo := int(float64(i) * step)
			hi := max(lo+1, int(float64(i+1)*step))
			choice[i] = called[lo+r.IntN(min(hi, len(called))-lo)]
		}
		d := 0.0
		for i, f := range t.features(choice) {
			d += wasserstein(f, whole[i]) / float64(len(whole))
		}
		if d < distance {
			best, distance = choice, d
		}
	}
	slices.Sort(best)
	sample, err = t.pick(0, len(t.minutes), best)
	return sample, distance, err
}

// samples are how many choices are made, of which the best is taken.
const samples = 200

// features are logarithms of calls, median durations and memory of functions, each sorted.
func (t *Trace) features(functions []int) [3][]float64 {
	var out [3][]float64
	for _, i := range functions {
		f := &t.Functions[i]
		for j, v := range []float64{float64(f.Calls), f.Duration.Median(), f.MemoryMiB} {
			out[j] = append(out[j], math.Log10(max(v, 1e-3)))
		}
	}
	for i := range out {
		slices.Sort(out[i])
	}
	return out
}

// wasserstein is the distance of order 1 between two sorted samples: the area between
// their quantile functions.
func wasserstein(a, b []float64) float64 {
	sum, at := 0.0, 0.0
	for i, j := 0, 0; i < len(a) && j < len(b); {
		nextA, nextB := float64(i+1)/float64(len(a)), float64(j+1)/float64(len(b))
		next := min(nextA, nextB)
		sum += (next - at) * math.Abs(a[i]-b[j])
		at = next
		if nextA <= next {
			i++
		}
		if nextB <= next {
			j++
		}
	}
	return sum
}

// quantilesOf are those of a sample, which it sorts.
func quantilesOf[T float32 | float64](v []T) (q Quantiles) {
	slices.Sort(v)
	for i, p := range Percents {
		q[i] = float32(v[(len(v)-1)*p/100])
	}
	return q
}
