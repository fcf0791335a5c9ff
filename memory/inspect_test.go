package memory_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

func TestInspect(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	before := memory.Inspect(im.Source, true)
	if before.Trace.Summary != nil || before.WorkingSet.Summary != nil || before.Trace.Problem != "" || before.Learned.Missed != -1 ||
		before.Map.Touched != nil || before.DataPages == 0 || before.Map.Data.Pages() != before.DataPages {
		t.Errorf("before a restore: %+v", before)
	}
	invoke(t, table, im, seq(0, 500))
	in := memory.Inspect(im.Source, true)
	trace, set := in.Trace.Summary, in.WorkingSet.Summary
	if trace == nil || set == nil {
		t.Fatalf("after a restore: %+v", in)
	}
	// Every third group of 8 of the 500 pages is a hole: 164 pages.
	if trace.Pages != 500 || trace.Runs != 1 || trace.Contiguity != 500 || trace.ZeroPages != 164 || trace.Reads != 500 || trace.Bytes != 336*pageSize {
		t.Errorf("trace: %+v", trace)
	}
	if trace.First > trace.Span || set.Pages != 500 || set.ZeroPages != 164 || set.Runs != 42 || in.WorkingSet.FileBytes <= set.Bytes || in.WorkingSet.Recorded.IsZero() {
		t.Errorf("trace: %+v, working set: %+v", trace, set)
	}
	if want := (api.PageRuns{{0, 500}}); !reflect.DeepEqual(in.Map.Touched, want) || !reflect.DeepEqual(in.Map.Prefetched, want) || in.Map.Zero.Pages() != 164 || in.Map.Missed.Pages() != 0 {
		t.Errorf("map: %+v", in.Map)
	}
	invoke(t, table, im, slices.Concat(seq(0, 500), []int{512, 528, 560}))
	in = memory.Inspect(im.Source, true)
	if want := (api.PageRuns{{512, 1}, {528, 1}, {560, 1}}); in.Learned.Restores != 1 || in.Learned.Missed != 3 || !reflect.DeepEqual(in.Map.Missed, want) {
		t.Errorf("after a restore that missed: %+v %+v", in.Learned, in.Map.Missed)
	}
	if in := memory.Inspect(im.Source, false); in.Map != nil {
		t.Error("pages that nobody asked for")
	}
}

func TestInspectTellsWhatIsIdle(t *testing.T) {
	im, table := newImage(t, testPages), sampling(t)
	invoke(t, table, im, seq(0, 800))
	for range 16 {
		invoke(t, table, im, seq(0, 500))
	}
	in := memory.Inspect(im.Source, true)
	if in.Learned.Wasted != 300 || !reflect.DeepEqual(in.Map.Wasted, api.PageRuns{{500, 300}}) {
		t.Errorf("%+v %v", in.Learned, in.Map.Wasted)
	}
}

// Each file that is damaged is told, and the others are still read.
func TestInspectTellsWhatIsRefused(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 500))
	invoke(t, table, im, seq(0, 510))
	problems := func(in api.SnapshotMemory) []string {
		return []string{in.Problem, in.Trace.Problem, in.WorkingSet.Problem, in.Learned.Problem}
	}
	for i, path := range []string{im.Path, filepath.Join(im.Dir, workingset.TraceFile), filepath.Join(im.Dir, workingset.SetFile), filepath.Join(im.Dir, workingset.LearnedFile)} {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := slices.Clone(whole)
		damaged[len(damaged)-1] ^= 1 // of a working set, a byte of its contents
		if i == 0 {
			damaged = damaged[:len(damaged)-pageSize]
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		in := memory.Inspect(im.Source, true)
		for j, p := range problems(in) {
			if (i == j) != strings.Contains(p, filepath.Base(path)) {
				t.Errorf("%s is damaged: problem %d is %q", filepath.Base(path), j, p)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
