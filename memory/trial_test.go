package memory_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
	"github.com/skep-dev/skep/memory/workingset"
)

// touch restores under a policy and touches these pages; end closes the session.
func touch(t *testing.T, table *memory.Policies, policy string, im *image, pages []int) (s memory.Session, end func() api.MemoryStats) {
	t.Helper()
	s = open(t, table, policy, im.Source)
	p := restore(t, s, one(int(im.Size/pageSize)))
	op := uffdtest.Op{Pages: pages}
	sums, err := p.Do(op)
	if err != nil {
		t.Fatal(err, s.Err())
	}
	im.check(t, []uffdtest.Op{op}, sums)
	return s, func() api.MemoryStats {
		p.Kill()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		return s.Stats()
	}
}

// tried has a snapshot tried out, by a request that touches these pages.
func tried(t *testing.T, table *memory.Policies, policy string, im *image, pages []int) {
	t.Helper()
	s, end := touch(t, table, policy, im, pages)
	if err := s.Tried(); err != nil {
		t.Error(err)
	}
	s.Responded() // too late
	if st := end(); st.Recorded {
		t.Errorf("a trial was recorded like an invocation: %+v", st)
	}
	if _, err := os.Stat(filepath.Join(im.Dir, workingset.SetFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a working set after a trial: %v", err)
	}
}

func hasTrial(im *image) bool {
	_, err := os.Stat(filepath.Join(im.Dir, "trial"))
	return err == nil
}

// The first start of a snapshot that was tried out prefetches what the trial
// touched, and leaves a working set of that and of what its invocation touched
// beside it.
func TestFirstStartAfterATrial(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := denseImage(t, 4096), newPolicies(t)
	tried(t, table, "stream", im, seq(0, 400))
	if got := memory.Inspect(im.Source, false); got.Trial.Summary == nil || got.Trial.Summary.Pages != 400 || got.WorkingSet.Summary != nil {
		t.Errorf("after the trial: %+v", got)
	}
	// It has no answer: what the trial touched goes on to be all that is known.
	s, end := touch(t, table, "stream", im, seq(0, 20))
	s.Abandoned()
	end()
	pages := slices.Concat(seq(10, 400), apart(1000, 30), seq(2000, 2020))
	st := invoke(t, table, im, pages)
	if !st.Recorded || st.Prefetched != 400 || st.Faults < 50 || st.Faults > 60 {
		t.Errorf("the first start: %+v; want 50 faults and some on the way", st)
	}
	if got := planned(t, im); len(got) != 450 || count(got, 0, 400) != 400 {
		t.Errorf("the working set has %d pages, %d of the trial's", len(got), count(got, 0, 400))
	}
	if hasTrial(im) {
		t.Error("the trial set is still there")
	}
	if st := invoke(t, table, im, pages); st.Missed != 0 || st.Recorded {
		t.Errorf("the second start: %+v", st)
	}
}

// While one instance records, others that start prefetch what the trial touched too.
func TestBurstAfterATrial(t *testing.T) {
	im, table := denseImage(t, 1024), newPolicies(t)
	tried(t, table, "stream", im, seq(0, 400))
	first, endFirst := touch(t, table, "stream", im, seq(0, 400))
	second, endSecond := touch(t, table, "stream", im, seq(0, 400))
	second.Responded()
	first.Responded()
	for i, st := range []api.MemoryStats{endFirst(), endSecond()} {
		if st.Prefetched < 390 || st.Recorded != (i == 0) {
			t.Errorf("start %d: %+v", i, st)
		}
	}
}

// A start beside one that records, without a trial, shares what that has touched so
// far, and does without a fault for each page of what it has not.
func TestStartBesideARecordingOne(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := denseImage(t, 1024), newPolicies(t)
	first, endFirst := touch(t, table, "stream", im, seq(0, 400))
	_, endSecond := touch(t, table, "stream", im, seq(0, 432))
	first.Responded()
	if st := endFirst(); !st.Recorded || st.Prefetched != 0 || st.Faults != 400 {
		t.Errorf("the first start: %+v", st)
	}
	// Of the 32 others, two faults for each cluster of 16.
	if st := endSecond(); st.Recorded || st.Prefetched < 400 || st.Faults > 20 {
		t.Errorf("the one beside it: %+v", st)
	}
	if got := planned(t, im); len(got) != 400 {
		t.Errorf("%d pages are recorded", len(got))
	}
}

// The policies that stand for the paper's know nothing of trials: the first start
// under them records every page, and prefetches none.
func TestTrialIsStreamsAlone(t *testing.T) {
	for _, policy := range []string{"parallel", "wsfile", "reap"} {
		t.Run(policy, func(t *testing.T) {
			im, table := denseImage(t, 1024), newPolicies(t)
			tried(t, table, policy, im, seq(0, 400))
			if hasTrial(im) {
				t.Error("a trial under it is kept")
			}
			tried(t, table, "stream", im, seq(0, 400))
			s, end := touch(t, table, policy, im, seq(300, 500))
			s.Responded()
			if st := end(); !st.Recorded || st.Prefetched != 0 || st.Faults != 200 {
				t.Errorf("the first start: %+v", st)
			}
			if got := planned(t, im); len(got) != 200 || hasTrial(im) {
				t.Errorf("%d pages are recorded, want 200; trial set left: %v", len(got), hasTrial(im))
			}
		})
	}
}

// A trial set that is wrong in any way is not used, and no byte of it is seen.
func TestDamagedTrial(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	for name, tc := range map[string]struct {
		file   string
		damage func([]byte) []byte
	}{
		"trace":           {workingset.TraceFile, flip(100)},
		"trace cut short": {workingset.TraceFile, cut},
		"head":            {workingset.SetFile, flip(100)},
		"contents":        {workingset.SetFile, flip(-1)},
		"set cut short":   {workingset.SetFile, cut},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NoLeaks(t)
			im, table := denseImage(t, 1024), newPolicies(t)
			tried(t, table, "stream", im, seq(0, 400))
			path := filepath.Join(im.Dir, "trial", tc.file)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tc.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := memory.Inspect(im.Source, false); got.Trial.Problem == "" || got.Trial.Summary != nil {
				t.Errorf("inspected: %+v", got.Trial)
			}
			if st := invoke(t, table, im, seq(0, 420)); !st.Recorded || st.Note == "" {
				t.Errorf("the first start: %+v", st)
			}
			if st := invoke(t, table, im, seq(0, 420)); st.Missed != 0 || hasTrial(im) {
				t.Errorf("the second start: %+v; trial set left: %v", st, hasTrial(im))
			}
		})
	}
}

// A snapshot that was removed meanwhile is not brought back by its trial.
func TestTrialOfARemovedSnapshot(t *testing.T) {
	im, table := denseImage(t, 64), newPolicies(t)
	s, end := touch(t, table, "stream", im, seq(0, 40))
	defer end()
	if err := os.RemoveAll(im.Dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Tried(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want that the directory is not there", err)
	}
	if _, err := os.Stat(im.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the snapshot's directory is back")
	}
}
