package scale

import (
	"testing"
	"time"
)

// newTestKPA is as in the tests of Knative's autoscaler
// (pkg/autoscaler/scaling/autoscaler_test.go): rates of 10, a target of so many.
func newTestKPA(t *testing.T, more string) *kpaPolicy {
	spec := "kpa:target-utilization=1,max-scale-up-rate=10,max-scale-down-rate=10"
	if more != "" {
		spec += "," + more
	}
	return mustNew(t, spec, Function{}, nil).(*kpaPolicy)
}

// The cases are those of Knative's TestAutoscalerScale and its neighbours, with
// the figures that they want.
func TestKPADesired(t *testing.T) {
	type step struct {
		at               time.Duration
		stable, panicked float64
		ready, want      int
	}
	for name, tc := range map[string]struct {
		target int
		more   string
		steps  []step
	}{
		"no data":                         {10, "", []step{{0, 0, 0, 1, 0}}},
		"below the target":                {181, "", []step{{0, 21, 26, 1, 1}}},
		"stable":                          {10, "", []step{{0, 50, 50, 1, 5}, {0, 100, 50, 1, 10}}},
		"stable, scaled already":          {10, "", []step{{0, 50, 50, 5, 5}}},
		"small scale-up rate":             {1, "max-scale-up-rate=1.1", []step{{0, 3, 3.1, 2, 3}}},
		"small scale-down rate":           {10, "max-scale-down-rate=1.1", []step{{0, 1, 1, 100, 90}}},
		"panic, limited by the rate":      {10, "", []step{{0, 50, 100, 1, 10}}},
		"down at once":                    {10, "", []step{{0, 100, 100, 8, 10}, {0, 50, 50, 8, 5}}},
		"to zero":                         {10, "", []step{{0, 1, 0, 1, 1}, {0, 0, 0, 1, 0}}},
		"activation scale":                {10, "activation-scale=2", []step{{0, 0, 0, 1, 0}, {0, 1, 0, 1, 2}}},
		"exponential":                     {1, "", []step{{0, 6, 6, 1, 6}, {0, 36, 36, 6, 36}, {time.Second, 216, 216, 36, 216}, {time.Second, 1296, 1296, 216, 1296}, {2 * time.Second, 1296, 1296, 1296, 1296}}},
		"panic, then not":                 {10, "", []step{{0, 100, 100, 1, 10}, {0, 100, 1000, 10, 100}, {30 * time.Second, 1, 1, 10, 100}, {61 * time.Second, 1, 1, 10, 1}}},
		"no panic after a slow increase":  {1, "", []step{{0, 11, 25, 10, 25}, {30 * time.Second, 30, 41, 40, 41}, {62 * time.Second, 50, 56, 55, 50}}},
		"scale up ten times, and again":   {10, "", []step{{0, 1000, 1001, 1, 10}, {0, 1000, 1001, 10, 100}}},
		"scale down ten times, and again": {10, "", []step{{0, 1, 1, 100, 10}, {0, 1, 1, 10, 1}}},
		"scale-down delay": {10, "scale-down-delay=5m", []step{{2 * time.Second, 40, 40, 1, 4}, {5 * time.Minute, 0, 0, 4, 4}, {5*time.Minute + 2*time.Second, 0, 0, 4, 0},
			{9 * time.Minute, 40, 40, 4, 4}, {10 * time.Minute, 30, 30, 4, 4}, {11 * time.Minute, 0, 0, 4, 4}, {14 * time.Minute, 0, 0, 4, 3}, {15 * time.Minute, 0, 0, 3, 0}}},
	} {
		k := newTestKPA(t, tc.more)
		for i, s := range tc.steps {
			got := k.desired(s.at, s.stable, s.panicked, &Load{Busy: s.ready, Concurrency: tc.target})
			if got != s.want {
				t.Errorf("%s, step %d: %+v wanted %d", name, i, s, got)
			}
		}
	}
}

// One request at a time for ten seconds, at one instance that takes one: 1/0.7 is
// two. Then none: after the stable window it goes, since the gateway was in front of
// it for longer than the grace period.
func TestKPAOverTime(t *testing.T) {
	p := mustNew(t, "kpa", Function{}, nil)
	d := p.Decide(0, &Load{Waiting: 1, Concurrency: 1, Max: 10})
	if d.Start != 1 || d.Again != 2*time.Second {
		t.Fatalf("the first request: %+v, want one start at once", d)
	}
	busy := &Load{Active: 1, Busy: 1, Concurrency: 1, Max: 10}
	for now := 2 * time.Second; now <= 10*time.Second; now += 2 * time.Second {
		d = p.Decide(now, busy)
		if d.Start != 1 || d.Keep != 2 {
			t.Fatalf("after %v: %+v, want 1/0.7, so 2", now, d)
		}
	}
	idle := &Load{Idle: 2, Free: 2, Concurrency: 1, Max: 10}
	gone := time.Duration(0)
	for now := 12 * time.Second; now <= 3*time.Minute && gone == 0; now += 2 * time.Second {
		if d = p.Decide(now, idle); d.Keep == 0 {
			gone = now
		}
		idle.Idle, idle.Free = d.Keep, d.Keep // the others end
	}
	// Ten seconds of one request, the newest of them the tenth: none is in a window of 60 s
	// from 70 s on, and the tick after looks at whole seconds.
	if gone < 70*time.Second || gone > 74*time.Second {
		t.Errorf("scaled to zero after %v, want the stable window after the last request", gone)
	}
}

func TestKPARetention(t *testing.T) {
	p := mustNew(t, "kpa:scale-to-zero-pod-retention-period=5m", Function{}, nil)
	p.Decide(0, &Load{Waiting: 1, Concurrency: 1, Max: 10})
	gone := time.Duration(0)
	for now := 2 * time.Second; now <= 20*time.Minute && gone == 0; now += 2 * time.Second {
		if d := p.Decide(now, &Load{Idle: 1, Free: 1, Concurrency: 1, Max: 10}); d.Keep == 0 {
			gone = now
		}
	}
	if gone < 6*time.Minute || gone > 6*time.Minute+6*time.Second {
		t.Errorf("scaled to zero after %v, want the window and 5 minutes", gone)
	}
}

// Worked out by hand from how Knative averages over its buckets (pkg/autoscaler/aggregation).
func TestWindow(t *testing.T) {
	w := newWindow(5 * time.Second)
	want := func(second int64, avg float64) {
		t.Helper()
		if got := w.average(second); got != avg {
			t.Errorf("average at %d: %v, want %v", second, got, avg)
		}
	}
	want(0, 0)
	for i := int64(0); i < 5; i++ {
		w.add(i, float64(i+1))
	}
	want(4, 3)       // (1+2+3+4+5)/5
	w.add(5, 6)      // 1 falls out
	want(5, 4)       // (2+3+4+5+6)/5
	want(7, 5)       // two seconds later, (4+5+6)/3
	want(10, 0)      // a window later
	w.add(10, 8)     // a gap as long: from here on
	want(10, 8)      //
	w.add(12, 4)     // 11 was 0
	want(12, 4)      // (8+0+4)/3
	w.add(12, 2)     // more in the same second
	want(12, 14./3.) //
}
