package trace

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Quantiles describe how long invocations of a function take: at 0, 1, 25, 50, 75, 99
// and 100%, in seconds. Between two of them every duration is as likely.
type Quantiles [7]float32

// at are the quantiles' parts of 2³².
var at = [7]uint64{0, 1 << 32 / 100, 1 << 30, 1 << 31, 3 << 30, (1 << 32) * 99 / 100, 1 << 32}

// Percents are the quantiles that there are.
var Percents = [7]int{0, 1, 25, 50, 75, 99, 100}

// draw returns a duration, by 32 bits of chance.
func (q *Quantiles) draw(chance uint64) time.Duration {
	x := chance >> 32
	i := 1
	for x >= at[i] {
		i++
	}
	part := float64(x-at[i-1]) / float64(at[i]-at[i-1])
	lo, hi := float64(q[i-1]), float64(q[i])
	return time.Duration((lo + part*(hi-lo)) * float64(time.Second))
}

// Draw returns a duration.
func (q *Quantiles) Draw(r *rand.Rand) time.Duration { return q.draw(r.Uint64()) }

// Mean of the durations, in seconds.
func (q *Quantiles) Mean() float64 {
	sum := 0.0
	for i := 1; i < len(q); i++ {
		sum += float64(q[i-1]+q[i]) / 2 * float64(at[i]-at[i-1]) / (1 << 32)
	}
	return sum
}

// Median of the durations, in seconds.
func (q *Quantiles) Median() float64 { return float64(q[3]) }

// tidy makes them ascend, as published ones do not always, and no less than nothing.
func (q *Quantiles) tidy() {
	for i := range q {
		if !(q[i] >= 0) || q[i] > maxDuration {
			q[i] = min(max(q[i], 0), maxDuration)
			if q[i] != q[i] {
				q[i] = 0
			}
		}
	}
	slices.Sort(q[:])
}

// maxDuration of an invocation, in seconds: ten days.
const maxDuration = 864000

// sortByTime sorts invocations: by radix, since there may be hundreds of thousands in a
// minute.
func sortByTime(in []Invocation) {
	if len(in) < 256 {
		slices.SortStableFunc(in, func(a, b Invocation) int { return int(a.At - b.At) })
		return
	}
	lo := in[0].At
	for i := range in {
		lo = min(lo, in[i].At)
	}
	// A minute in units of 2¹⁵ ns has 21 bits: two passes of 11. What falls into the same
	// 33 µs stays in the order in which it was, which insertion puts right.
	const shift, bits = 15, 11
	tmp := make([]Invocation, len(in))
	src, dst := in, tmp
	for pass := range 2 {
		var count [1 << bits]int
		key := func(v *Invocation) int {
			return int(uint64(v.At-lo)>>(shift+bits*pass)) & (1<<bits - 1)
		}
		for i := range src {
			count[key(&src[i])]++
		}
		sum := 0
		for i, n := range count {
			count[i] = sum
			sum += n
		}
		for i := range src {
			k := key(&src[i])
			dst[count[k]] = src[i]
			count[k]++
		}
		src, dst = dst, src
	}
	for i := 1; i < len(in); i++ {
		v := in[i]
		j := i
		for ; j > 0 && in[j-1].At > v.At; j-- {
			in[j] = in[j-1]
		}
		in[j] = v
	}
}
