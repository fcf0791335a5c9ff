package scale

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestStarts(t *testing.T) {
	for name, tc := range map[string]struct {
		load Load
		want int
	}{
		"nothing to do":              {Load{Max: 8}, 0},
		"one request, cold":          {Load{Waiting: 1, Concurrency: 1, Max: 8}, 1},
		"one is on its way":          {Load{Waiting: 1, Starting: 1, Concurrency: 1, Max: 8}, 0},
		"twenty, cold":               {Load{Waiting: 20, Concurrency: 1, Max: 8}, 8},
		"twenty, five each":          {Load{Waiting: 20, Concurrency: 5, Max: 8}, 4},
		"twenty-one, five each":      {Load{Waiting: 21, Concurrency: 5, Max: 8}, 5},
		"all busy":                   {Load{Waiting: 3, Busy: 8, Concurrency: 1, Max: 8}, 0},
		"two may be added":           {Load{Waiting: 3, Busy: 6, Concurrency: 1, Max: 8}, 2},
		"an idle one serves":         {Load{Waiting: 1, Idle: 1, Free: 1, Concurrency: 1, Max: 8}, 0},
		"busy with room":             {Load{Waiting: 3, Busy: 1, Free: 3, Concurrency: 4, Max: 8}, 0},
		"starting will not do":       {Load{Waiting: 5, Starting: 2, Concurrency: 2, Max: 8}, 1},
		"zero concurrency is one":    {Load{Waiting: 2, Max: 8}, 2},
		"more than max there are":    {Load{Waiting: 2, Busy: 9, Max: 8}, 0},
		"a limit of nothing is that": {Load{Waiting: 2}, 0},
	} {
		if got, _ := Starts(tc.load); got != tc.want {
			t.Errorf("%s: Starts(%+v) = %d, want %d", name, tc.load, got, tc.want)
		}
	}
}

func TestStartsProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		l := Load{Waiting: r.IntN(50), Starting: r.IntN(10), Busy: r.IntN(10), Idle: r.IntN(10),
			Free: r.IntN(20), Concurrency: r.IntN(6), Max: r.IntN(20)}
		n, _ := Starts(l)
		per := max(1, l.Concurrency)
		all := l.Starting + l.Busy + l.Idle
		unserved := l.Waiting - l.Free - l.Starting*per
		switch {
		case n < 0:
			t.Fatalf("%+v: %d", l, n)
		case n > 0 && all+n > l.Max:
			t.Fatalf("%+v: %d starts make more than max", l, n)
		case n > 0 && (n-1)*per >= unserved:
			t.Fatalf("%+v: %d starts, one fewer would do", l, n)
		case n*per < unserved && all+n < l.Max:
			t.Fatalf("%+v: %d starts leave requests unserved below max", l, n)
		}
		more := l
		more.Waiting++
		if m, _ := Starts(more); m < n {
			t.Fatalf("%+v: one more request, fewer starts", l)
		}
	}
}

// What is worth a start of 500 ms, at which a request may wait for 750 ms.
func TestStartsAreWorthIt(t *testing.T) {
	const ms = time.Millisecond
	load := func(waiting int, service time.Duration, change func(*Load)) Load {
		l := Load{Waiting: waiting, Concurrency: 1, Max: 100, Start: 500 * ms, Service: service}
		if change != nil {
			change(&l)
		}
		return l
	}
	busy := func(ages ...time.Duration) func(*Load) {
		return func(l *Load) { l.Busy, l.Running = len(ages), ages }
	}
	starting := func(ages ...time.Duration) func(*Load) {
		return func(l *Load) { l.Starting, l.Underway = len(ages), ages }
	}
	for name, tc := range map[string]struct {
		load  Load
		want  int
		again time.Duration
	}{
		"nobody waits": {load(0, 20*ms, busy(0)), 0, 0},
		// The last of seven waits for 140 ms.
		"a herd at one warm instance": {load(7, 20*ms, busy(0)), 0, 250 * ms},
		// The 37th waits for 740 ms, three for longer: one place serves 25 in the time of a start.
		"a larger herd": {load(40, 20*ms, busy(0)), 1, 250 * ms},
		// 63 wait for longer: three places.
		"a hundred":           {load(100, 20*ms, busy(0)), 3, 250 * ms},
		"a hundred, max 2":    {load(100, 20*ms, func(l *Load) { busy(0)(l); l.Max = 2 }), 1, 250 * ms},
		"a hundred, max 1":    {load(100, 20*ms, func(l *Load) { busy(0)(l); l.Max = 1 }), 0, 0},
		"nothing is there":    {load(1, 20*ms, nil), 1, 250 * ms},
		"a herd, cold":        {load(8, 20*ms, nil), 1, 250 * ms},
		"one is on its way":   {load(8, 20*ms, starting(100*ms)), 0, 250 * ms},
		"minutes each":        {load(7, 2*time.Minute, busy(time.Second)), 7, 250 * ms},
		"minutes, cold":       {load(7, 2*time.Minute, starting(0)), 6, 250 * ms},
		"longer than a start": {load(1, 800*ms, busy(0)), 1, 250 * ms},
		"nearly done":         {load(1, 800*ms, busy(700*ms)), 0, 250 * ms},
		// It has taken 30 times as long as others: it may take 600 ms more, and 800 ms.
		"slower than others": {load(1, 20*ms, busy(600*ms)), 0, 250 * ms},
		"hung":               {load(1, 20*ms, busy(800*ms)), 1, 250 * ms},
		"one of two hung":    {load(7, 20*ms, busy(time.Minute, 0)), 0, 250 * ms},
		// Four at once, every 200 ms: the 16th waits for 600 ms + 200 ms.
		"four at once":     {load(20, 200*ms, func(l *Load) { busy(0, 0, 0, 0)(l); l.Concurrency, l.Busy = 4, 1 }), 1, 250 * ms},
		"free places":      {load(3, time.Minute, func(l *Load) { l.Idle, l.Free = 3, 3 }), 0, 250 * ms},
		"unknown service":  {load(7, 0, busy(0)), 0, 250 * ms},
		"unknown, a while": {load(7, 0, busy(250*ms)), 2, 250 * ms}, // 250 ms each: from the fourth on, two to a place
		// Two that have run for about as long, and may go on for long.
		"unknown, two of an age": {load(1, 0, busy(10*time.Second, 9700*ms)), 1, 250 * ms},
		"unknown, one is young":  {load(1, 0, busy(10*time.Second, 100*ms)), 1, 250 * ms},
		"unknown start":          {Load{Waiting: 7, Busy: 1, Running: []time.Duration{0}, Service: 20 * ms, Max: 8}, 7, 0},
	} {
		got, again := Starts(tc.load)
		if got != tc.want || again != tc.again {
			t.Errorf("%s: Starts(%+v) = %d, %v; want %d, %v", name, tc.load, got, again, tc.want, tc.again)
		}
	}
}

func TestAverage(t *testing.T) {
	a := Average(0, time.Second)
	if a != time.Second {
		t.Errorf("the first counts %v", a)
	}
	if a = Average(a, 2*time.Second); a != 1200*time.Millisecond {
		t.Errorf("1 s, then 2 s: %v", a)
	}
}

func TestEndingAndVictim(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(seconds ...int) (out []time.Time) {
		for _, s := range seconds {
			out = append(out, now.Add(-time.Duration(s)*time.Second))
		}
		return out
	}
	for _, tc := range []struct {
		since     []time.Time
		busy, min int
		ending    []int
		next      time.Duration
		victim    int
	}{
		{nil, 2, 0, nil, 0, -1},
		{ago(10), 0, 0, nil, 50 * time.Second, 0},
		{ago(60), 0, 0, []int{0}, 0, 0},
		{ago(10, 70, 59, 61), 0, 0, []int{1, 3}, time.Second, 1},
		{ago(10, 70, 59, 61), 0, 3, []int{1}, 0, 1},
		{ago(10, 70, 59, 61), 1, 3, []int{1, 3}, 0, 1},
		{ago(10, 70), 1, 5, nil, 0, 1},
	} {
		ending, next := Ending(tc.since, now, Decision{Idle: time.Minute, Keep: tc.min}, len(tc.since)+tc.busy)
		if !slices.Equal(ending, tc.ending) || next != tc.next {
			t.Errorf("Ending(%v) of %d, at least %d = %v, %v; want %v, %v", tc.since, len(tc.since)+tc.busy, tc.min, ending, next, tc.ending, tc.next)
		}
		if v := Victim(tc.since); v != tc.victim {
			t.Errorf("Victim(%v) = %d, want %d", tc.since, v, tc.victim)
		}
	}
	if ending, next := Ending(ago(1e6), now, Decision{Idle: Forever}, 1); ending != nil || next != 0 {
		t.Errorf("for ever ends %v, %v", ending, next)
	}
}
