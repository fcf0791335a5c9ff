package memory_test

import (
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// Blocks of 512 pages: contents, two that are empty, contents in one page, empty.
func holed(page int) bool { return page >= 512 && page != 3*512+7 }

const holedPages = 5 * 512

// Where the snapshot holds nothing for a block the guest has zeros without a fault,
// also for pages that are to be installed; threads that waited there before go on.
func TestHolesAreLeftToTheKernel(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := imageWithout(t, holedPages, holed), newPolicies(t)
	invoke(t, table, im, append(seq(0, 100), seq(600, 700)...)) // of the empty blocks, too
	s := open(t, table, "stream", im.Source)
	p := uffdtest.Spawn(t, one(holedPages))
	early := uffdtest.Op{Pages: []int{550, 1500, 2100}, Write: true}
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(early, early)
		done <- err
	}()
	for ready := false; !ready; { // one of them waits
		var err error
		if ready, err = p.Guest.FD.Poll(-1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Attach(t.Context(), p.Guest); err != nil {
		t.Fatal(err)
	}
	if err := s.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err, s.Err())
	}
	before := s.Stats()
	for _, pages := range [][]int{seq(551, 1500), seq(2101, holedPages)} {
		im.touch(t, p, pages...)
	}
	if st := s.Stats(); st.Faults != before.Faults || st.ZeroedAhead != 0 {
		t.Errorf("%d faults on pages that the snapshot holds nothing for, %d zeros laid", st.Faults-before.Faults, st.ZeroedAhead)
	}
	// A block with one page of contents is served.
	im.touch(t, p, 3*512+7, 3*512+8)
	if st := counted(t, s, before.Faults+2); st.Faults != before.Faults+2 {
		t.Errorf("%+v", st)
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
}

// Memory that is given back across the border of what is left to the kernel is zeros
// on both sides, and what was written to on the far side is gone as well.
func TestHolesAndRemovals(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := imageWithout(t, holedPages, holed), newPolicies(t)
	record(t, table, im, seq(0, holedPages))
	for round := range 5 {
		s := open(t, table, "stream", im.Source)
		// The second empty block begins in one region and ends in the other.
		p := restore(t, s, uffdtest.Options{Sizes: []uint64{1200 * pageSize, (holedPages - 1200) * pageSize}})
		gone := seq(400, 1100) // contents, and what is left to the kernel
		ops := []uffdtest.Op{
			{Pages: gone, Write: true},
			{Pages: gone, Remove: true, Repeat: 3},
			{Pages: shuffled(holedPages, uint64(round)), Kernel: true},
			{Pages: shuffled(holedPages, uint64(round+100))},
		}
		if _, err := p.Do(ops...); err != nil {
			t.Fatal(err, s.Err())
		}
		if _, err := p.Do(uffdtest.Op{Pages: gone, Remove: true}); err != nil {
			t.Fatal(err)
		}
		after := uffdtest.Op{Pages: seq(0, holedPages)}
		sums, err := p.Do(after)
		if err != nil {
			t.Fatal(err, s.Err())
		}
		want := &image{sums: append([]uint32(nil), im.sums...)}
		for _, page := range gone {
			want.sums[page] = 0
		}
		want.check(t, []uffdtest.Op{after}, sums)
		p.Kill()
		if err := s.Close(); err != nil || s.Err() != nil {
			t.Fatal(err, s.Err())
		}
	}
}
