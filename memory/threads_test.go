package memory_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
	"github.com/skep-dev/skep/memory/workingset"
)

// each has a thread touch each of the pages.
func each(pages ...int) (ops []uffdtest.Op) {
	for _, p := range pages {
		ops = append(ops, uffdtest.Op{Pages: []int{p}})
	}
	return ops
}

// doing lets threads of the guest run, and returns what waits for them.
func (im *image) doing(t *testing.T, p *uffdtest.Process, ops ...uffdtest.Op) (wait func()) {
	t.Helper()
	done := make(chan struct{})
	var sums [][]uint32
	var err error
	go func() {
		defer close(done)
		sums, err = p.Do(ops...)
	}()
	return func() {
		t.Helper()
		<-done
		if err != nil {
			t.Fatal(err)
		}
		im.check(t, touching(ops), sums)
	}
}

// touching are the first of the ops, those that touch.
func touching(ops []uffdtest.Op) []uffdtest.Op {
	if i := slices.IndexFunc(ops, func(o uffdtest.Op) bool { return o.Remove }); i >= 0 {
		return ops[:i]
	}
	return ops
}

// Threads that wait for neighbours are all woken by the first one's, and nothing
// is read for the others.
func TestThreadsOfOneRun(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 32))
	for range 4 {
		s := open(t, table, "stream", im.Source)
		s.Prefetch()
		if err := memory.AwaitRead(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		p := uffdtest.Spawn(t, one(testPages))
		wait := im.doing(t, p, each(seq(0, 32)...)...)
		if ready, err := p.Guest.FD.Poll(-1); err != nil || !ready {
			t.Fatal(ready, err)
		}
		if err := s.Attach(t.Context(), p.Guest); err != nil {
			t.Fatal(err)
		}
		wait()
		var read int64
		for page := range 32 {
			if im.sums[page] != 0 {
				read += pageSize
			}
		}
		if st := s.Stats(); st.BytesRead != read {
			t.Errorf("%d bytes were read: want the %d of the working set: %+v", st.BytesRead, read, st)
		}
		p.Kill()
		s.Close()
	}
}

// A page that is being read with others of the working set is not read for its
// fault. Meanwhile other faults are served; and what the guest gives back is zeros.
func TestFaultWaitsForRead(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := imageWithout(t, testPages, func(page int) bool { return page >= 600 }), newPolicies(t)
	const planned = 60 // read at once
	invoke(t, table, im, seq(0, planned))
	path := filepath.Join(im.Dir, workingset.SetFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		damage, remove bool
	}{"comes": {}, "is wrong": {damage: true}, "is given back": {remove: true}} {
		t.Run(name, func(t *testing.T) {
			b := slices.Clone(good)
			if c.damage {
				b[len(b)-1] ^= 1
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			release := table.HoldReads()
			s := open(t, table, "stream", im.Source)
			p := uffdtest.Spawn(t, one(testPages))
			if err := s.Attach(t.Context(), p.Guest); err != nil {
				t.Fatal(err)
			}
			s.Prefetch()
			until(t, s, "the read to begin", func(api.MemoryStats) bool { return memory.Issued(s) > 0 })
			// The zeros could not be served by a loop that reads for a fault.
			ops, served := []uffdtest.Op{{Pages: []int{10, 11, 12}}, {Pages: []int{700}}}, int64(1)
			want := *im
			if c.remove {
				ops, served = append(ops, uffdtest.Op{Pages: []int{10}, Remove: true, Pause: 20 * time.Millisecond}), 2
				want.sums = slices.Clone(im.sums)
				want.sums[10] = 0
			}
			wait := want.doing(t, p, ops...)
			counted(t, s, served)
			release()
			wait()
			im.touch(t, p, 600, planned-1, 0, 31)
			st := s.Stats()
			if !c.damage && st.BytesRead != planned*pageSize {
				t.Errorf("%d bytes were read: want the working set's %d", st.BytesRead, planned*pageSize)
			}
			if c.damage != (st.Note != "") {
				t.Errorf("note: %q", st.Note)
			}
			p.Kill()
			s.Close()
		})
	}
}

// A guest that always has a thread which waits does not keep what has been read
// from being installed.
func TestInstallingGoesOnBesideFaults(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	invoke(t, table, im, seq(0, 300))
	s := open(t, table, "stream", im.Source)
	s.Prefetch()
	if err := memory.AwaitRead(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	p := uffdtest.Spawn(t, one(testPages))
	wait := im.doing(t, p, uffdtest.Op{Pages: []int{1000}})
	faults, prefetched, err := memory.FirstTurn(s, p.Guest)
	if err != nil {
		t.Fatal(err)
	}
	wait()
	if faults != 1 || prefetched == 0 {
		t.Errorf("in one turn: %d faults served, %d pages installed", faults, prefetched)
	}
	p.Guest.FD.Close()
	p.Kill()
}
