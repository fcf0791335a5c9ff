package scale

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestTarget(t *testing.T) {
	for _, tc := range []struct {
		concurrency int
		utilization float64
		want        int
	}{{1, 0.5, 1}, {10, 0.7, 7}, {10, 0, 10}, {10, 1, 10}, {10, 0.01, 1}, {3, 0.99, 2}, {0, 0, 1}} {
		if got := Target(tc.concurrency, tc.utilization); got != tc.want {
			t.Errorf("%v of %d: %d, want %d", tc.utilization, tc.concurrency, got, tc.want)
		}
	}
}

// The last used below its target; where none is, the one with the fewest.
func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		active []int
		want   int
	}{{nil, -1}, {[]int{0, 0}, 1}, {[]int{0, 3}, 0}, {[]int{2, 3}, 0}, {[]int{5, 3, 4}, 1}, {[]int{4, 4}, 1}, {[]int{1, 4, 2}, 2}} {
		if got := Choose(tc.active, 3); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.active, got, tc.want)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		active := make([]int, 1+r.IntN(6))
		for i := range active {
			active[i] = r.IntN(10)
		}
		target := 1 + r.IntN(10)
		chosen := active[Choose(active, target)]
		for _, n := range active {
			if n < target && chosen >= target || chosen >= target && n < chosen {
				t.Fatalf("of %v with a target of %d one with %d was chosen", active, target, chosen)
			}
		}
	}
}

// With ten requests at once in each and a target of seven, eight want two, though the one
// that there is could serve them; seven do not. What is short does not matter: they are
// there at the same time.
func TestStartsBeyondTheTarget(t *testing.T) {
	for _, policy := range []string{"none", "fixed", "hybrid", "greedy-dual", "break-even"} {
		for _, tc := range []struct {
			active, starting, most, want int
		}{{7, 0, 8, 0}, {8, 0, 8, 1}, {8, 1, 8, 0}, {10, 0, 8, 1}, {8, 0, 1, 0}} {
			l := &Load{Busy: 1, Active: tc.active, Free: 10 - tc.active, Starting: tc.starting, Concurrency: 10, Target: 7, Max: tc.most, Start: time.Second, Service: time.Millisecond}
			if d := mustNew(t, policy, Function{}, nil).Decide(0, l); d.Start != tc.want {
				t.Errorf("%s with %d requests, %d starting: %+v, want %d starts", policy, tc.active, tc.starting, d, tc.want)
			}
		}
	}
	// Knative's own target gives way to the function's.
	k := mustNew(t, "kpa", Function{}, nil)
	var d Decision
	for s := range 90 {
		d = k.Decide(time.Duration(s)*time.Second, &Load{Busy: 1, Active: 8, Concurrency: 10, Target: 4, Max: 8})
	}
	if d.Keep != 2 {
		t.Errorf("kpa keeps %d for 8 requests of a target of 4, want 2", d.Keep)
	}
}
