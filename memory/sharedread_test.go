package memory_test

import (
	"os"
	"sync"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
	"github.com/skep-dev/skep/memory/workingset"
)

// Clones of one snapshot at once: all of them see it, and together they read the
// working set about once. Some leave before they have anything.
func TestClonesShareOneRead(t *testing.T) {
	testenv.NoLeaks(t)
	const pages, clones = 8192, 12
	im, table := newImage(t, pages), newPolicies(t)
	order := shuffled(pages, 9)
	record(t, table, im, order)
	release, err := table.HoldTurns(t.Context()) // so that the read lasts until all are there
	if err != nil {
		t.Fatal(err)
	}
	var sessions []memory.Session
	for range clones {
		s := open(t, table, "stream", im.Source)
		s.Prefetch()
		sessions = append(sessions, s)
	}
	stats := make([]api.MemoryStats, clones)
	var wg sync.WaitGroup
	for i, s := range sessions {
		if i%4 == 0 { // the first of all, who began the read, among them
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	release()
	for i, s := range sessions {
		if i%4 == 0 {
			continue
		}
		p := uffdtest.Spawn(t, one(pages))
		if err := s.Attach(t.Context(), p.Guest); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.Install(t.Context()); err != nil {
				t.Error(err)
				return
			}
			op := uffdtest.Op{Pages: order}
			sums, err := p.Do(op)
			if err != nil {
				t.Error(err, s.Err())
				return
			}
			im.check(t, []uffdtest.Op{op}, sums)
			s.Responded()
			p.Kill()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			stats[i] = s.Stats()
		})
	}
	wg.Wait()
	for i := 0; i < clones; i += 4 {
		stats[i] = sessions[i].Stats()
	}
	read, prefetched, faults := int64(0), int64(0), int64(0)
	for _, st := range stats {
		read += st.BytesRead
		prefetched += st.Prefetched
		faults += st.Faults
	}
	contents := int64(0)
	for _, sum := range im.sums {
		if sum != 0 {
			contents += pageSize
		}
	}
	// A fault that overtakes reads its page.
	if read < contents || read > contents+faults*pageSize {
		t.Errorf("%d clones read %d bytes and served %d faults, the working set has %d bytes", clones, read, faults, contents)
	}
	if prefetched < pages*clones/2 {
		t.Errorf("%d pages were prefetched by %d clones", prefetched, clones)
	}
}

// A shared read that comes upon damage: every session goes on without.
func TestClonesOfADamagedWorkingSet(t *testing.T) {
	const pages = 2048
	im, table := newImage(t, pages), newPolicies(t)
	order := shuffled(pages, 5)
	record(t, table, im, order)
	f, err := os.OpenFile(im.Dir+"/"+workingset.SetFile, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 3<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var sessions []memory.Session
	for range 4 {
		sessions = append(sessions, open(t, table, "stream", im.Source))
	}
	for _, s := range sessions {
		p := restore(t, s, one(pages))
		op := uffdtest.Op{Pages: order}
		sums, err := p.Do(op)
		if err != nil {
			t.Fatal(err, s.Err())
		}
		im.check(t, []uffdtest.Op{op}, sums)
		p.Kill()
		s.Close()
	}
	if _, err := os.Stat(im.Dir + "/" + workingset.SetFile); err == nil {
		t.Error("the damaged working set is still there")
	}
}
