package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestContainerdTables(t *testing.T) {
	s := func(variant, until string, n, run int, ms time.Duration, shim int64) ctrSample {
		return ctrSample{Run: run, Variant: variant, Until: until, AtOnce: n, Took: ms * time.Millisecond, Shim: shim, Task: shim}
	}
	samples := []ctrSample{
		s("boot", untilAnswer, 1, 0, 400, 3<<20), s("boot", untilExit, 1, 0, 500, -1),
		s("restore reap", untilAnswer, 1, 0, 100, 1<<20), s("restore reap", untilAnswer, 1, 1, 300, 2<<20), s("restore reap", untilAnswer, 1, 2, 200, 3<<20),
		s("node reap", untilAnswer, 1, 0, 100, -1),
		s("node reap", untilAnswer, 2, 0, 100, -1), s("node reap", untilAnswer, 2, 0, 140, -1), s("node reap", untilAnswer, 2, 1, 300, -1), s("node reap", untilAnswer, 2, 1, 360, -1),
	}
	rows := ctrTable(samples)
	for i, want := range []string{
		"boot 400 400 400 1.00 - 500 500 500 3.0 3.0",
		"restore reap 200 120 280 0.50 2.00 - - - 2.0 2.0",
		"node reap 100 100 100 0.25 - - - - - -",
	} {
		if got := strings.Join(rows[i+1], " "); got != want {
			t.Errorf("row %d is %q: want %q", i+1, got, want)
		}
	}
	if rows := ctrCrowdTable(samples); len(rows) != 2 || !slices.Equal(rows[1], []string{"node reap", "2", "220", "250", "125"}) {
		t.Errorf("together: %q", rows)
	}
}

func TestContainerdVersion(t *testing.T) {
	text := "Client:\n  Version:  v2.4.2\n  Revision: a\n\nServer:\n  Version:  1.6.20~ds1\n  Revision: b\n"
	if got := containerdVersion(text); got != "1.6.20~ds1" {
		t.Errorf("%q", got)
	}
}
