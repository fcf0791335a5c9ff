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
		if got := Starts(tc.load); got != tc.want {
			t.Errorf("%s: Starts(%+v) = %d, want %d", name, tc.load, got, tc.want)
		}
	}
}

func TestStartsProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		l := Load{Waiting: r.IntN(50), Starting: r.IntN(10), Busy: r.IntN(10), Idle: r.IntN(10),
			Free: r.IntN(20), Concurrency: r.IntN(6), Max: r.IntN(20)}
		n, per := Starts(l), max(1, l.Concurrency)
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
		if Starts(more) < n {
			t.Fatalf("%+v: one more request, fewer starts", l)
		}
	}
}

func TestExpiredAndVictim(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(seconds ...int) (out []time.Time) {
		for _, s := range seconds {
			out = append(out, now.Add(-time.Duration(s)*time.Second))
		}
		return out
	}
	for _, tc := range []struct {
		since   []time.Time
		expired []int
		next    time.Duration
		victim  int
	}{
		{nil, nil, 0, -1},
		{ago(10), nil, 50 * time.Second, 0},
		{ago(60), []int{0}, 0, 0},
		{ago(10, 70, 59, 61), []int{1, 3}, time.Second, 1},
	} {
		expired, next := Expired(tc.since, now, time.Minute)
		if !slices.Equal(expired, tc.expired) || next != tc.next {
			t.Errorf("Expired(%v) = %v, %v; want %v, %v", tc.since, expired, next, tc.expired, tc.next)
		}
		if v := Victim(tc.since); v != tc.victim {
			t.Errorf("Victim(%v) = %d, want %d", tc.since, v, tc.victim)
		}
	}
}

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for failures := range 200 {
		d := Backoff(failures)
		if d < last || d > 10*time.Second || (failures == 1 && d != 100*time.Millisecond) {
			t.Fatalf("Backoff(%d) = %v after %v", failures, d, last)
		}
		last = d
	}
}
