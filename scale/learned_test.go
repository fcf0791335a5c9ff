package scale

import (
	"testing"
	"time"
)

// timeline asks a policy about one instance's worth of requests: each takes a second
// and comes so long after the last.
type timeline struct {
	p   Policy
	now time.Duration
	l   Load
}

func (t *timeline) request(gap time.Duration) Decision {
	t.now += gap
	t.l = Load{Waiting: 0, Active: 1, Busy: 1, Concurrency: 1, Max: 4, Start: t.l.Start, Service: time.Second}
	t.p.Decide(t.now, &t.l)
	t.now += time.Second
	t.l.Active, t.l.Busy, t.l.Idle, t.l.Free = 0, 0, 1, 1
	return t.p.Decide(t.now, &t.l)
}

// Every request comes 20 minutes and a half after the last: bin 20. It is unloaded at
// once, is to be there again after 90% of 20 minutes, and is kept until 110% of 21.
func TestHybridStartsAhead(t *testing.T) {
	tl := &timeline{p: mustNew(t, "hybrid", Function{}, nil)}
	if d := tl.request(0); d.Idle != 4*time.Hour {
		t.Fatalf("nothing is known: %+v, want the width of the histogram", d)
	}
	gap := 20*time.Minute + 30*time.Second
	d := tl.request(gap)
	if d.Idle != 0 || d.Again != 18*time.Minute {
		t.Fatalf("one idle time is known: %+v, want to unload and to be asked in 18m", d)
	}
	tl.l.Idle, tl.l.Free = 0, 0
	d = tl.p.Decide(tl.now+18*time.Minute, &tl.l)
	keep := 23*time.Minute + 6*time.Second - 18*time.Minute
	if d.Start != 1 || d.Idle != keep || d.Again != keep {
		t.Fatalf("at the head: %+v, want a start, kept for %v", d, keep)
	}
	if d = tl.p.Decide(tl.now+19*time.Minute, &tl.l); d.Start != 0 {
		t.Errorf("a second start ahead: %+v", d)
	}
	if d = tl.p.Decide(tl.now+24*time.Minute, &Load{Idle: 1, Free: 1, Max: 4}); d.Idle != 0 {
		t.Errorf("after the tail: %+v, want it to end", d)
	}
}

// Requests within seconds: the head is 0, so that nothing is unloaded; the tail is the
// first minute's end, and a tenth.
func TestHybridKeeps(t *testing.T) {
	tl := &timeline{p: mustNew(t, "hybrid", Function{}, nil)}
	var d Decision
	for range 20 {
		d = tl.request(5 * time.Second)
	}
	if d.Idle != 66*time.Second || d.Again != 0 {
		t.Errorf("%+v, want to keep for 66s", d)
	}
	// In bins of two seconds they are in the third: loaded ahead after 4 s less a tenth, until
	// its end at 6 s and a tenth.
	tl = &timeline{p: mustNew(t, "hybrid:bin=2s,range=2m", Function{}, nil)}
	for range 20 {
		d = tl.request(5 * time.Second)
	}
	if d.Idle != 0 || d.Again != 3600*time.Millisecond {
		t.Errorf("in bins of 2s: %+v, want to unload and to be asked in 3.6s", d)
	}
}

// Idle times all over the histogram, as often each: the variation of the bins is low,
// and it is kept for as long as the histogram is wide.
func TestHybridWithoutPattern(t *testing.T) {
	tl := &timeline{p: mustNew(t, "hybrid:range=10m", Function{}, nil)}
	var d Decision
	for i := range 100 {
		d = tl.request(time.Duration(i%10)*time.Minute + time.Second)
	}
	if d.Idle != 10*time.Minute {
		t.Errorf("%+v, want 10m", d)
	}
}

// Idle times of eight hours are outside: the next is forecast, 15% around it.
func TestHybridForecasts(t *testing.T) {
	tl := &timeline{p: mustNew(t, "hybrid", Function{}, nil)}
	var d Decision
	for range 5 {
		d = tl.request(8 * time.Hour)
	}
	if want := time.Duration(6.8 * float64(time.Hour)); d.Idle != 0 || d.Again != want {
		t.Fatalf("%+v, want to be asked in %v", d, want)
	}
	tl.l.Idle, tl.l.Free = 0, 0
	d = tl.p.Decide(tl.now+d.Again, &tl.l)
	if want := time.Duration(2.4 * float64(time.Hour)); d.Start != 1 || d.Idle != want {
		t.Errorf("%+v, want a start that is kept for %v", d, want)
	}
}

// Two functions: one is used ten times, and one is as large as it and used once. A
// third is small. Priority is clock + frequency × cost / size.
func TestGreedyDual(t *testing.T) {
	g := &Group{}
	use := func(p Policy, times int, start time.Duration) float64 {
		for range times {
			p.Decide(0, &Load{Active: 1, Busy: 1, Max: 4, Start: start})
			p.Decide(0, &Load{Idle: 1, Max: 4, Start: start})
		}
		return p.(Ranker).Rank()
	}
	often := mustNew(t, "greedy-dual", Function{MemoryMiB: 200}, g)
	once := mustNew(t, "greedy-dual", Function{MemoryMiB: 200}, g)
	small := mustNew(t, "greedy-dual", Function{MemoryMiB: 100}, g)
	for _, tc := range []struct {
		p         Policy
		times     int
		start     time.Duration
		want      float64
		afterward string
	}{
		{often, 10, 2 * time.Second, 0.1, ""}, // 10 × 2 s / 200
		{once, 1, 2 * time.Second, 0.01, ""},  // 1 × 2 s / 200
		{small, 1, 4 * time.Second, 0.04, ""}, // 1 × 4 s / 100
	} {
		if got := use(tc.p, tc.times, tc.start); got != tc.want {
			t.Errorf("rank %v, want %v", got, tc.want)
		}
	}
	once.(Ranker).Evicted(0)
	if got := use(once, 1, 2*time.Second); got != 0.02 {
		t.Errorf("rank %v, want the clock of the last eviction and once more", got)
	}
	once.(Ranker).Evicted(0)
	once.(Ranker).Evicted(0)
	if got := use(small, 1, 4*time.Second); got != 0.02+0.08 {
		t.Errorf("rank %v, want the clock and twice", got)
	}
}

// A start of a second at a price of 12,000 MiB×s is worth 128 MiB for 93.75 s.
func TestBreakEven(t *testing.T) {
	f := Function{MemoryMiB: 128}
	even := 93750 * time.Millisecond
	tl := &timeline{p: mustNew(t, "break-even:price=12000", f, nil), l: Load{Start: time.Second}}
	if d := tl.request(0); d.Idle != even {
		t.Fatalf("nothing is known: %+v, want %v", d, even)
	}
	// A tenth of the start, a tenth of the time.
	fast := &timeline{p: mustNew(t, "break-even:price=12000", f, nil), l: Load{Start: 100 * time.Millisecond}}
	if d := fast.request(0); d.Idle != even/10 {
		t.Fatalf("fast starts: %+v, want %v", d, even/10)
	}
	var d Decision
	for range 20 {
		d = tl.request(10 * time.Second)
	}
	// Bin of 8.192 to 12.288 s.
	if d.Idle != 12288*time.Millisecond {
		t.Errorf("always after 10s: %+v, want the end of its bin", d)
	}
	for range 200 {
		d = tl.request(10 * time.Minute)
	}
	// To keep for 10 minutes costs six times what a start does; keeping for 12.3 s serves
	// 20 of 220, and costs more for the 200 than it saves.
	if d.Idle != time.Millisecond {
		t.Errorf("nearly always after 10m: %+v, want to keep nothing", d)
	}
}

// Two requests at once every minute, one every 10 s: the second instance's idle times
// are its own.
func TestBreakEvenFollowsLevels(t *testing.T) {
	b := mustNew(t, "break-even", Function{}, nil).(*breakEvenPolicy)
	for i := range 60 {
		now := time.Duration(i) * 10 * time.Second
		levels := 1
		if i%6 == 0 {
			levels = 2
		}
		for n := 1; n <= levels; n++ {
			b.follow(now, &Load{Active: n, Concurrency: 1})
		}
		for n := levels - 1; n >= 0; n-- {
			b.follow(now+time.Second, &Load{Active: n, Concurrency: 1})
		}
	}
	if got := b.bins[gapBin(9*time.Second)]; got != 59 {
		t.Errorf("%d idle times of 9s, want 59", got)
	}
	if got := b.bins[gapBin(59*time.Second)]; got != 9 {
		t.Errorf("%d idle times of 59s, want 9", got)
	}
}

func TestGapBins(t *testing.T) {
	for _, gap := range []time.Duration{0, time.Millisecond, 1500 * time.Microsecond, 2 * time.Millisecond, 3 * time.Millisecond, 7 * time.Millisecond, time.Second, time.Hour, 24 * time.Hour} {
		bin := gapBin(gap)
		if gap.Truncate(time.Millisecond) >= gapEnd(bin) || bin > 0 && gap < gapEnd(bin-1) && gap > time.Millisecond {
			t.Errorf("%v is in bin %d, which ends at %v", gap, bin, gapEnd(bin))
		}
	}
	if bin := gapBin(Forever); bin != gapBins-1 {
		t.Errorf("for ever is in bin %d", bin)
	}
}
