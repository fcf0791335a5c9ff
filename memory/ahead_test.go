package memory_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// loaded is a process that has touched pages ahead, as one that loads device state does.
func loaded(t *testing.T, table *memory.Policies, im *image, pages []int) (*memory.Ahead, *uffdtest.Process) {
	t.Helper()
	a, err := table.Ahead(t.Context(), im.Source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	p := uffdtest.Spawn(t, one(int(im.Size/pageSize)))
	if err := a.Attach(t.Context(), p.Guest); err != nil {
		t.Fatal(err)
	}
	op := uffdtest.Op{Pages: pages}
	sums, err := p.Do(op)
	if err != nil {
		t.Fatal(err, a.Err())
	}
	im.check(t, []uffdtest.Op{op}, sums)
	return a, p
}

// taken hands memory that was served ahead over to a restore's session.
func taken(t *testing.T, a *memory.Ahead, s memory.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s.Prefetch()
	if err := a.HandOver(ctx, userfaultfd.Guest{}, s); err != nil {
		t.Fatal(err)
	}
	if err := s.Install(ctx); err != nil {
		t.Fatal(err)
	}
}

// Whatever the policy, with a working set and without, a guest whose memory was served
// ahead sees the snapshot, and what it touched then is recorded as its own.
func TestAhead(t *testing.T) {
	testenv.NoLeaks(t)
	const pages = 2048
	for _, policy := range newPolicies(t).Names() {
		if policy == "mmap" {
			continue
		}
		t.Run(policy, func(t *testing.T) {
			im, table := newImage(t, pages), newPolicies(t)
			ahead := []int{0, 16, 17, 700, 1999} // 16 and 17 are holes
			for run := range 3 {
				a, p := loaded(t, table, im, ahead)
				s := open(t, table, policy, im.Source)
				taken(t, a, s)
				op := uffdtest.Op{Pages: seq(100, 300)}
				sums, err := p.Do(op)
				if err != nil {
					t.Fatal(err, s.Err())
				}
				im.check(t, []uffdtest.Op{op}, sums)
				s.Responded()
				ops := []uffdtest.Op{{Pages: shuffled(pages, 1)}, {Pages: shuffled(pages, 2)}}
				if sums, err = p.Do(ops...); err != nil {
					t.Fatal(err, s.Err())
				}
				im.check(t, ops, sums)
				p.Kill()
				if err := errors.Join(s.Close(), a.Close()); err != nil {
					t.Error(err)
				}
				recorded := run == 0 && policy != "lazy" && policy != "resident"
				if st := s.Stats(); st.Recorded != recorded {
					t.Errorf("run %d: %+v", run, st)
				}
				if recorded {
					if set := planned(t, im); len(set) != 205 || !set[0] || !set[16] || !set[1999] {
						t.Errorf("a working set of %d pages; want the 200 of the invocation and 5 touched ahead", len(set))
					}
				}
			}
		})
	}
}

// Samples are not held back in vain where the page was touched ahead.
func TestAheadIsNotIdle(t *testing.T) {
	im, table := denseImage(t, 1024), sampling(t)
	invoke(t, table, im, seq(0, 320)) // records
	for range 64 {                    // each page's turn comes four times
		a, p := loaded(t, table, im, seq(0, 160))
		s := open(t, table, "stream", im.Source)
		taken(t, a, s)
		if _, err := p.Do(uffdtest.Op{Pages: seq(160, 320)}); err != nil {
			t.Fatal(err, s.Err())
		}
		s.Responded()
		p.Kill()
		if err := errors.Join(s.Close(), a.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if set := planned(t, im); count(set, 0, 320) != 320 {
		t.Errorf("%d of 320 pages are left in the working set", count(set, 0, 320))
	}
}

// Faults that were read and not answered are answered by who takes over: threads touch
// all the while.
func TestAheadWhileFaultsCome(t *testing.T) {
	testenv.NoLeaks(t)
	const pages = 4096
	im, table := denseImage(t, pages), newPolicies(t)
	for _, policy := range []string{"lazy", "stream"} {
		for range 5 {
			a, p := loaded(t, table, im, []int{1})
			s := open(t, table, policy, im.Source)
			ops := []uffdtest.Op{{Pages: shuffled(pages, 1)}, {Pages: shuffled(pages, 1)}, {Pages: shuffled(pages, 3)}, {Pages: shuffled(pages, 4)}}
			done := make(chan error, 1)
			var sums [][]uint32
			go func() {
				var err error
				sums, err = p.Do(ops...)
				done <- err
			}()
			taken(t, a, s)
			if err := <-done; err != nil {
				t.Fatal(err, s.Err())
			}
			im.check(t, ops, sums)
			s.Abandoned()
			p.Kill()
			if err := errors.Join(s.Close(), a.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Memory is not handed over that a session could not serve rightly, and a VMM that
// has loaded nothing hands over its own.
func TestAheadRefuses(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, 64), newPolicies(t)
	refused := func(why string, a *memory.Ahead, p *uffdtest.Process) {
		t.Helper()
		s := open(t, table, "lazy", im.Source)
		if err := a.HandOver(t.Context(), userfaultfd.Guest{}, s); err == nil {
			t.Errorf("memory was handed over: %s", why)
		}
		if p != nil {
			p.Kill()
		}
		if err := errors.Join(s.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	}
	a, p := loaded(t, table, im, seq(0, 8))
	if _, err := p.Do(uffdtest.Op{Pages: seq(0, 4), Remove: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Do(uffdtest.Op{Pages: seq(8, 9)}); err != nil { // the removal was read before
		t.Fatal(err)
	}
	refused("pages were given back", a, p)
	a, err := table.Ahead(t.Context(), im.Source)
	if err != nil {
		t.Fatal(err)
	}
	refused("there is none", a, nil)

	if a, err = table.Ahead(t.Context(), im.Source); err != nil {
		t.Fatal(err)
	}
	s := open(t, table, "lazy", im.Source)
	p = uffdtest.Spawn(t, one(64))
	if err := a.HandOver(t.Context(), p.Guest, s); err != nil {
		t.Fatal(err)
	}
	op := uffdtest.Op{Pages: seq(0, 64)}
	sums, err := p.Do(op)
	if err != nil {
		t.Fatal(err)
	}
	im.check(t, []uffdtest.Op{op}, sums)
	p.Kill()
	if err := errors.Join(s.Close(), a.Close()); err != nil {
		t.Error(err)
	}
}

// A memory file that is cut short fails what is served ahead, with a reason.
func TestAheadFails(t *testing.T) {
	im, table := denseImage(t, 256), newPolicies(t)
	a, p := loaded(t, table, im, []int{3})
	if err := os.Truncate(im.Path, 8*pageSize); err != nil {
		t.Fatal(err)
	}
	go p.Do(uffdtest.Op{Pages: []int{200}}) //nolint:errcheck // it hangs until it is killed
	<-a.Failed()
	if !errors.Is(a.Err(), memory.ErrRead) {
		t.Errorf("%v, want ErrRead", a.Err())
	}
	p.Kill()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
