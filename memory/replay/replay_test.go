package replay_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
	"github.com/skep-dev/skep/memory/workingset"
)

func TestMain(m *testing.M) {
	replay.ChildMain()
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	src, err := replay.Synthetic{MemorySize: 32 << 20, Pages: 1000, Runs: 300}.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rep, err := replay.Run(context.Background(), replay.Options{Sources: []memory.Source{src}, Runs: 2, Touchers: 2, Instances: 2, Cold: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := rep.Table(os.Stderr); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, s := range rep.Samples {
		seen[s.Policy]++
		if own := s.Policy == "mmap" || s.Policy == replay.MmapHuge; own && (s.Faults == 0 || s.Fetch != 0) {
			t.Errorf("a file that was mapped: %+v", s)
		}
		if s.Total < s.Serve || s.Serve <= 0 {
			t.Errorf("its times do not add up: %+v", s)
		}
	}
	for _, policy := range []string{"lazy", "mmap", replay.MmapHuge, "reap", "stream"} {
		if seen[policy] != 4 {
			t.Errorf("%d samples of %s: want 4", seen[policy], policy)
		}
	}
}

// What is touched can be another trace than the recorded one, and between touches
// the work that it says is done, on the processor and in full.
func TestRunTouchesAndWorks(t *testing.T) {
	src, err := replay.Synthetic{MemorySize: 32 << 20, Pages: 1000, Runs: 300}.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const each, pages = 100 * time.Microsecond, 200
	touched := &workingset.Trace{Of: workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size}}
	for i := range pages {
		touched.Touches = append(touched.Touches, workingset.Touch{Page: uint32(i * 7), After: time.Duration(i+1) * each})
	}
	o := replay.Options{Sources: []memory.Source{src}, Touched: []*workingset.Trace{touched}, Work: true, Policies: []string{"lazy", "mmap", "stream"}, Runs: 1}
	rep, err := replay.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range rep.Samples {
		if s.Serve < pages*each-10*time.Microsecond {
			t.Errorf("%s: all was touched in %v, though the work between takes %v", s.Policy, s.Serve, pages*each)
		}
		if s.Policy == "lazy" && s.Faults != pages {
			t.Errorf("%d faults: want one for each of the %d pages", s.Faults, pages)
		}
	}
	if len(rep.Floors) != 3 {
		t.Errorf("floors: %+v", rep.Floors)
	}
	o.Touched = append(o.Touched, touched)
	if _, err := replay.Run(context.Background(), o); err == nil {
		t.Error("two traces were taken for one snapshot")
	}
}

// A grid has every case, and its table each policy in each.
func TestGrid(t *testing.T) {
	src, err := replay.Synthetic{MemorySize: 4 << 20, Pages: 50, Runs: 10}.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	reports, err := replay.Grid(context.Background(), replay.Options{Sources: []memory.Source{src}, Policies: []string{"reap", "stream"}, Runs: 1, NoFloors: true})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := replay.GridTable(&out, reports); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"stream", "warm, no pauses, 1 threads", "cold, as recorded, 16 threads"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, &out)
		}
	}
	if len(reports) != 12 {
		t.Errorf("%d cases", len(reports))
	}
}
