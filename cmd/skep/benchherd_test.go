package main

import (
	"slices"
	"testing"
	"time"
)

// The medians of each setting, the microVMs of each herd counted once, and the
// ratio of the medians.
func TestHerdTable(t *testing.T) {
	var samples []herdSample
	for run := range 2 {
		for i := range 3 {
			samples = append(samples,
				herdSample{Run: run, MaxInstances: 1, Latency: time.Duration(20*(i+1)) * time.Millisecond},
				herdSample{Run: run, MaxInstances: 8, Latency: time.Duration(60*(i+1)) * time.Millisecond, Started: run + 2})
		}
	}
	rows := herdTable(samples, 8)
	want := [][]string{
		{"1", "2", "0", millis(40 * time.Millisecond)},
		{"8", "2", "5", millis(120 * time.Millisecond)},
		{"ratio", "", "", "3.00"},
	}
	if len(rows) != 4 {
		t.Fatalf("%q", rows)
	}
	for i, w := range want {
		if !slices.Equal(rows[i+1][:4], w) {
			t.Errorf("row %d is %q, want %q", i, rows[i+1], w)
		}
	}
}
