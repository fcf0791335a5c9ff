package scale

import (
	"testing"
	"time"
)

func TestAhead(t *testing.T) {
	var a Ahead
	now := time.Now()
	if n := a.Wanted(now, 8); n != 1 {
		t.Errorf("at first %d are wanted", n)
	}
	for range 15 { // of sixteen at once
		a.Missed(now)
	}
	for _, want := range []struct {
		after     time.Duration
		most, are int
	}{{0, 32, 16}, {0, 8, 8}, {0, 0, 0}, {-time.Hour, 32, 16}, {aheadHalf, 32, 9}, {2 * aheadHalf, 32, 5}, {10 * aheadHalf, 32, 1}} {
		if n := a.Wanted(now.Add(want.after), want.most); n != want.are {
			t.Errorf("after %v, at most %d: %d are wanted, want %d", want.after, want.most, n, want.are)
		}
	}
	// One that is missed now and then is one more, not ever more.
	for range 1000 {
		now = now.Add(2 * aheadHalf)
		a.Missed(now)
	}
	if n := a.Wanted(now, 32); n != 2 {
		t.Errorf("missed now and then: %d are wanted", n)
	}
}
