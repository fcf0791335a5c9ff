package replay_test

import (
	"context"
	"os"
	"testing"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
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
