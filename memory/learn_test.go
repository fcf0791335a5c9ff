package memory_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
	"github.com/skep-dev/skep/memory/workingset"
)

// invoke is one restore under stream whose first invocation touches these pages.
func invoke(t *testing.T, table *memory.Policies, im *image, pages []int) api.MemoryStats {
	t.Helper()
	s := open(t, table, "stream", im.Source)
	if s.Mapped() {
		return s.Stats()
	}
	p := restore(t, s, one(int(im.Size/pageSize)))
	op := uffdtest.Op{Pages: pages}
	sums, err := p.Do(op)
	if err != nil {
		t.Fatal(err, s.Err())
	}
	im.check(t, []uffdtest.Op{op}, sums)
	s.Responded()
	p.Kill()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return s.Stats()
}

// sampling is a table of policies whose restores all hold a sample back.
func sampling(t *testing.T) *memory.Policies {
	table := memory.New(memory.Options{SampleEvery: 1})
	t.Cleanup(func() { table.Close() })
	return table
}

// planned is the working set as it is on disk.
func planned(t *testing.T, im *image) map[int]bool {
	t.Helper()
	set, f, err := workingset.LoadSet(im.Dir, workingset.Of{SnapshotID: im.SnapshotID, MemorySize: im.Size})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	pages := make(map[int]bool)
	for _, r := range set.Runs {
		for p := r.First; p < r.End(); p++ {
			pages[int(p)] = true
		}
	}
	return pages
}

// count is how many of pages [from, to) are in a set.
func count(set map[int]bool, from, to int) (n int) {
	for p := from; p < to; p++ {
		if set[p] {
			n++
		}
	}
	return n
}

// apart is n pages so far from each other that a miss of one brings no other.
func apart(from, n int) []int {
	pages := make([]int, n)
	for i := range pages {
		pages[i] = from + 16*i
	}
	return pages
}

// A function moves from some pages to others: those that it asks for come into
// the working set after the second restore that lacks them, those that it no
// longer touches leave it, those that it still touches stay.
func TestWorkingSetFollowsTheFunction(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := denseImage(t, 8192), sampling(t)
	kept, old, now := seq(0, 800), seq(800, 1100), apart(1200, 300)
	st := invoke(t, table, im, slices.Concat(kept, old))
	if !st.Recorded {
		t.Fatalf("the first restore recorded nothing: %+v", st)
	}
	pages := slices.Concat(kept, now)
	for i, want := range []int64{300, 300, 0, 0} {
		if st = invoke(t, table, im, pages); st.Missed != want {
			t.Fatalf("restore %d missed %d pages, want %d: %+v", i, st.Missed, want, st)
		}
	}
	if got := planned(t, im); count(got, 1200, 8192) != 300 {
		t.Errorf("%d of 300 new pages are in the working set", count(got, 1200, 8192))
	}
	for range 3*16 + 1 {
		st = invoke(t, table, im, pages)
	}
	got := planned(t, im)
	if n := count(got, 800, 1100); n > 16 {
		t.Errorf("%d of 300 pages that are not touched any more are still in the working set", n)
	}
	if n := count(got, 0, 800) + count(got, 1200, 8192); n != 1100 {
		t.Errorf("%d of 1100 pages that are touched are in the working set", n)
	}
	if st.Wasted < 0 || st.Wasted > 50 || st.Missed != 0 {
		t.Errorf("in the end: %+v", st)
	}
}

// What a sample holds back is asked for and has the right contents, and is
// never taken for a miss; a page that one invocation alone touched is not added.
func TestStableWorkingSetStays(t *testing.T) {
	im, table := denseImage(t, 8192), sampling(t)
	order := shuffled(1000, 3)
	invoke(t, table, im, order)
	before := planned(t, im)
	for i := range 20 {
		st := invoke(t, table, im, slices.Concat(order, apart(1100+320*i, 20)))
		if st.Missed != 20 || st.Wasted != 0 || st.Note != "" {
			t.Fatalf("restore %d: %+v", i, st)
		}
	}
	after := planned(t, im)
	if len(after) != len(before) || count(after, 0, 1000) != 1000 {
		t.Errorf("the working set went from %d to %d pages", len(before), len(after))
	}
}

// A function that touches other pages each time: recorded anew once, then
// mapped for a while, then tried again; across a restart of the daemon.
func TestPrefetchingThatNeverPays(t *testing.T) {
	im, table := denseImage(t, 8192), newPolicies(t)
	next := 0
	pages := func() []int {
		next = (next + 1) % 16
		return slices.Concat(seq(0, 20), apart(32+next, 500))
	}
	notes := ""
	for range 2 + 4 + 4 {
		notes += invoke(t, table, im, pages()).Note + "\n"
	}
	for _, want := range []string{"the next start records it anew", "does not pay"} {
		if strings.Count(notes, want) != 1 {
			t.Errorf("%q is not said once:\n%s", want, notes)
		}
	}
	if _, err := os.Stat(im.Dir + "/" + workingset.SetFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the working set is still there: %v", err)
	}
	again := newPolicies(t)
	for i := range 64 {
		if st := invoke(t, again, im, pages()); st.Policy != "mmap" || !strings.Contains(st.Note, "does not pay") {
			t.Fatalf("start %d: %+v", i, st)
		}
	}
	if st := invoke(t, again, im, pages()); !st.Recorded {
		t.Errorf("it is not tried again: %+v", st)
	}
}

// The restore that finds a working set not worth having removes that one, and not
// one that was written while it ran.
func TestVerdictSparesANewerSet(t *testing.T) {
	im, table := denseImage(t, 8192), newPolicies(t)
	path := im.Dir + "/" + workingset.SetFile
	n := 0
	pages := func() []int { n++; return slices.Concat(seq(0, 20), apart(32+n, 500)) }
	for range 1 + 3 {
		invoke(t, table, im, pages()) // the first records, the others are poor
	}
	s := open(t, table, "stream", im.Source)
	p := restore(t, s, one(8192))
	im.touch(t, p, pages()...)
	set, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.WriteFile(path, set, 0o600); err != nil { // by another session
		t.Fatal(err)
	}
	s.Responded()
	p.Kill()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the newer working set: %v; %s", err, s.Stats().Note)
	}
	if st := invoke(t, table, im, pages()); !strings.Contains(st.Note, "records it anew") {
		t.Errorf("it is poor, too, and stays: %+v", st)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the poor working set is still there: %v", err)
	}
}

// What was learned and is damaged is learned anew.
func TestDamagedLearningIsIgnored(t *testing.T) {
	im, table := denseImage(t, testPages), newPolicies(t)
	more := slices.Concat(seq(0, 500), apart(512, 60))
	invoke(t, table, im, seq(0, 500))
	invoke(t, table, im, more)
	if err := os.WriteFile(im.Dir+"/"+workingset.LearnedFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := newPolicies(t)
	if st := invoke(t, again, im, more); st.Missed != 60 || strings.Contains(st.Note, "rewritten") {
		t.Errorf("%+v", st)
	}
	if st := invoke(t, again, im, more); !strings.Contains(st.Note, "60 pages added") {
		t.Errorf("%+v", st)
	}
}

// Frozen policies change nothing.
func TestFrozen(t *testing.T) {
	im := newImage(t, testPages)
	table := memory.New(memory.Options{Frozen: true})
	defer table.Close()
	invoke(t, table, im, seq(0, 500))
	for range 4 {
		if st := invoke(t, table, im, seq(0, 700)); st.Missed != -1 || st.Note != "" {
			t.Errorf("%+v", st)
		}
	}
	if n := len(planned(t, im)); n != 500 {
		t.Errorf("the working set has %d pages now", n)
	}
}
