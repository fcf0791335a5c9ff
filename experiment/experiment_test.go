package experiment

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/workingset"
)

func settings(t *testing.T) Settings {
	t.Helper()
	set := Settings{Functions: []string{"helloworld", "pyaes"}, Runs: 3, MaxVMs: 4, MaxReplays: 8, GVisor: "gvisor"}
	for _, e := range All() {
		set.Experiments = append(set.Experiments, e.Name)
	}
	return set
}

// Variants take turns; no point is measured twice; inputs are not the recorded one.
func TestPlan(t *testing.T) {
	plan, _, err := Plan(settings(t))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	last := map[string]int{}
	for _, p := range plan {
		if seen[p.key()] {
			t.Errorf("%s: %s comes twice", p.Experiment, p)
		}
		seen[p.key()] = true
		if p.Run < last[p.Experiment] {
			t.Errorf("%s: %s comes after run %d", p.Experiment, p, last[p.Experiment]+1)
		}
		last[p.Experiment] = p.Run
		if p.Input == 1 && p.Variant != sameInput && p.Experiment != native.Name || p.Input > Inputs || p.Seconds <= 0 {
			t.Errorf("%s: %s has input %d, %g s", p.Experiment, p, p.Input, p.Seconds)
		}
		if _, err := measurer(p.Experiment); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := Plan(Settings{Experiments: []string{"absent"}}); err == nil {
		t.Error("an experiment that is not there was planned")
	}
}

func TestComparePages(t *testing.T) {
	trace := func(pages ...uint32) *workingset.Trace {
		tr := &workingset.Trace{Of: workingset.Of{SnapshotID: "s", MemorySize: 1 << 20}}
		for _, p := range pages {
			tr.Touches = append(tr.Touches, workingset.Touch{Page: p})
		}
		return tr
	}
	p := comparePages(trace(1, 2, 3, 9), trace(2, 1, 5, 6, 7, 30))
	if p.Same != 2 || p.Unique != 4 || p.Missing != 2 || p.Contiguity != 2 || !slices.Equal(p.Lengths[:3], []int{1, 1, 1}) {
		t.Errorf("%+v", p)
	}
}

func TestDropCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 64<<12), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := DropCache([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	// A file system in memory has nowhere to drop to.
	if c.Before != 64 && c.Before != -1 || c.Left != 0 && c.Left != c.Before {
		t.Errorf("%+v", c)
	}
	if _, err := DropCache([]string{path + "absent"}); err == nil {
		t.Error("a file that is not there was dropped")
	}
}

func TestFootprint(t *testing.T) {
	if _, err := readFootprint(os.Getpid(), 12345); err == nil {
		t.Error("a mapping of an impossible size was found")
	}
}

// The process is back where it was and the group is gone.
func TestSlowDown(t *testing.T) {
	testenv.Need(t, "root")
	th, err := findThrottle()
	if err != nil {
		t.Skip(err)
	}
	before, err := th.home()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := deviceOf(path); err != nil {
		t.Skip(err)
	}
	s, err := slowDown(path, Limit{BPS: 1e8, IOPS: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if now, err := th.home(); err != nil || now != s.dir {
		t.Errorf("in %s, %v: want %s", now, err, s.dir)
	}
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	if now, err := th.home(); err != nil || now != before {
		t.Errorf("back in %s, %v: want %s", now, err, before)
	}
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("the group is left: %v", err)
	}
}

func TestCompareRuns(t *testing.T) {
	a, b := &Data{}, &Data{}
	for i := range 6 {
		p := Point{Experiment: "policies", Function: "f", Variant: "reap", Run: i}
		sa, sb := sampleOf(100+float64(i)), sampleOf(50+float64(i))
		sa.Point, sb.Point = p, p
		a.Samples, b.Samples = append(a.Samples, sa), append(b.Samples, sb)
	}
	rows := Compare(a, b)
	if len(rows) != 1 || rows[0].Verdict != "faster" || rows[0].P == nil || math.Abs(rows[0].Change.Value-0.51) > 0.02 {
		t.Errorf("%+v", rows)
	}
	if rows := Compare(a, a); rows[0].Verdict != "no difference beyond noise" {
		t.Errorf("%+v", rows)
	}
	if len(CompareTable(rows)) != 2 {
		t.Error("the table has no row")
	}
}
