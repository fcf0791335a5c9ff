package memory_test

import (
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// touch has the guest touch pages, and checks what it sees.
func (im *image) touch(t *testing.T, p *uffdtest.Process, pages ...int) {
	t.Helper()
	op := uffdtest.Op{Pages: pages}
	sums, err := p.Do(op)
	if err != nil {
		t.Fatal(err)
	}
	im.check(t, []uffdtest.Op{op}, sums)
}

// until waits for a session's figures to become something.
func until(t *testing.T, s memory.Session, what string, is func(api.MemoryStats) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(s.Stats()); time.Sleep(time.Millisecond) {
		if err := s.Err(); err != nil || time.Now().After(end) {
			t.Fatalf("%s: %v, %+v", what, err, s.Stats())
		}
	}
}

// counted returns a session's figures when it has counted so many faults: the
// guest goes on as soon as one is answered, and it is counted then.
func counted(t *testing.T, s memory.Session, faults int64) api.MemoryStats {
	t.Helper()
	until(t, s, "the faults", func(st api.MemoryStats) bool { return st.Faults >= faults })
	return s.Stats()
}

// A guest that takes a page of fresh memory has the rest of the block without
// faults, but for what it gave back.
func TestZerosBeside(t *testing.T) {
	testenv.NoLeaks(t)
	// Contents in every block, or the kernel would have it alone.
	im, table := imageWithout(t, testPages, func(page int) bool { return page >= 600 && page%512 != 0 }), newPolicies(t)
	invoke(t, table, im, seq(0, 100))

	s := open(t, table, "stream", im.Source)
	p := restore(t, s, one(testPages))
	im.touch(t, p, 1100)
	until(t, s, "the block of the page", func(st api.MemoryStats) bool { return st.ZeroedAhead == 510 })
	im.touch(t, p, seq(1025, 1536)...)
	if st := counted(t, s, 1); st.Faults != 1 || st.ZeroPages != 1 || st.Prefetched != 100 {
		t.Errorf("a block whose zeros are there took faults: %+v", st)
	}
	if _, err := p.Do(uffdtest.Op{Pages: seq(1200, 1210), Remove: true}); err != nil {
		t.Fatal(err)
	}
	im.touch(t, p, seq(1200, 1210)...)
	if st := counted(t, s, 11); st.Faults != 11 || st.ZeroedAhead != 510 {
		t.Errorf("pages that were given back: %+v", st)
	}
	// Another block is its own; only its zeros come.
	im.touch(t, p, 1000)
	until(t, s, "a block in part", func(st api.MemoryStats) bool { return st.ZeroedAhead == 510+1024-600-1 })
	im.touch(t, p, seq(512, 1024)...)
}

// Under reap, which is the paper's, a miss is a page.
func TestReapServesMissesOneByOne(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 100))
	s := open(t, table, "reap", im.Source)
	p := restore(t, s, one(testPages))
	im.touch(t, p, seq(0, 1000)...)
	if st := counted(t, s, 900); st.Faults != 900 || st.ZeroedAhead != 0 {
		t.Errorf("%+v", st)
	}
}

// The second miss in a cluster brings the rest of it, which is learned like
// what was missed.
func TestClusterBeside(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 100))
	miss := func() api.MemoryStats {
		s := open(t, table, "stream", im.Source)
		p := restore(t, s, one(testPages))
		for c := 480; c < 960; c += 48 { // without holes, all of them
			im.touch(t, p, c+5)
		}
		if st := counted(t, s, 10); st.Faults != 10 || st.Prefetched != 100 {
			t.Fatalf("first misses: %+v", st)
		}
		for c := 480; c < 960; c += 48 {
			im.touch(t, p, c+9)
			im.touch(t, p, seq(c, c+16)...)
		}
		s.Responded()
		p.Kill()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return s.Stats()
	}
	for range 2 {
		if st := miss(); st.Faults != 20 || st.Missed != 20 || st.Prefetched != 100+10*14 {
			t.Errorf("clusters of which two pages were missed: %+v", st)
		}
	}
	set := planned(t, im)
	for c := 480; c < 960; c += 48 {
		if n := count(set, c, c+16); n != 16 {
			t.Errorf("%d of 16 pages of the cluster at %d are in the working set", n, c)
		}
	}
}

// What a guest gave back is zeros, also when pages beside it are missed.
func TestClusterLeavesRemovedPages(t *testing.T) {
	im, table := denseImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 100))
	s := open(t, table, "stream", im.Source)
	p := restore(t, s, one(testPages))
	if _, err := p.Do(uffdtest.Op{Pages: seq(804, 808), Remove: true}); err != nil {
		t.Fatal(err)
	}
	im.touch(t, p, 801)
	im.touch(t, p, 802)
	im.touch(t, p, slices.Concat(seq(800, 804), seq(808, 816))...)
	sums, err := p.Do(uffdtest.Op{Pages: seq(804, 808)})
	if err != nil {
		t.Fatal(err)
	}
	for i, sum := range sums[0] {
		if sum != 0 {
			t.Errorf("page %d was given back and has contents again", 804+i)
		}
	}
	if st := counted(t, s, 2+4); st.Faults != 2+4 || st.ZeroPages != 4 {
		t.Errorf("%+v", st)
	}
}

// Threads that touch what was not recorded while others give memory back see the
// snapshot or, where they gave back, zeros.
func TestBesideAndRemovals(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, 2*testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 100))
	for round := range 5 {
		s := open(t, table, "stream", im.Source)
		p := restore(t, s, one(2*testPages))
		half := shuffled(testPages, uint64(round))
		ops := []uffdtest.Op{{Pages: half}, {Pages: seq(0, testPages), Kernel: true}, {Pages: seq(testPages, 2*testPages), Remove: true, Repeat: 3}}
		sums, err := p.Do(ops...)
		if err != nil {
			t.Fatal(err, s.Err())
		}
		im.check(t, ops[:2], sums[:2])
		sums, err = p.Do(uffdtest.Op{Pages: seq(testPages, 2*testPages)})
		if err != nil {
			t.Fatal(err, s.Err())
		}
		if n := len(sums[0]) - len(slices.DeleteFunc(sums[0], func(sum uint32) bool { return sum != 0 })); n > 0 {
			t.Errorf("%d pages that were given back have contents again", n)
		}
		p.Kill()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
