package memory_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
	"github.com/skep-dev/skep/memory/workingset"
)

const testPages = 2048

func one(pages int) uffdtest.Options {
	return uffdtest.Options{Sizes: []uint64{uint64(pages) * pageSize}}
}

// record makes trace and working set of an image by a first run that touches
// the pages in this order.
func record(t testing.TB, table *memory.Policies, im *image, pages []int) {
	t.Helper()
	s := open(t, table, "reap", im.Source)
	p := restore(t, s, one(int(im.Size/pageSize)))
	if _, err := p.Do(uffdtest.Op{Pages: pages}); err != nil {
		t.Fatal(err, s.Err())
	}
	s.Responded()
	p.Kill()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.Stats().Recorded {
		t.Fatalf("not recorded: %+v", s.Stats())
	}
}

func seq(from, to int) (pages []int) {
	for p := from; p < to; p++ {
		pages = append(pages, p)
	}
	return pages
}

// Threads fault on the same pages, in the same order, while a prefetch installs
// them: every one of them is woken.
func TestManyThreadsOnePage(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	order := shuffled(testPages, 7)
	record(t, table, im, order)
	for _, policy := range []string{"lazy", "stream", "resident", "parallel"} {
		for range 3 {
			s := open(t, table, policy, im.Source)
			p := uffdtest.Spawn(t, one(testPages))
			if err := s.Attach(t.Context(), p.Guest); err != nil {
				t.Fatal(err)
			}
			var ops []uffdtest.Op
			for i := range 8 {
				ops = append(ops, uffdtest.Op{Pages: order, Kernel: i == 7})
			}
			done := make(chan error, 1)
			var sums [][]uint32
			go func() {
				var err error
				sums, err = p.Do(ops...)
				done <- err
			}()
			if err := s.Install(t.Context()); err != nil { // at the same time
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(policy, err, s.Err())
			}
			im.check(t, ops, sums)
			p.Kill()
			s.Close()
		}
	}
}

// Faults come before anyone listens, and some of a run's pages are there before
// the run is installed: the install is short, or finds pages, and goes on.
func TestFaultsBeforeInstall(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	record(t, table, im, seq(0, testPages))
	for _, policy := range []string{"reap", "wsfile", "parallel", "resident", "stream"} {
		s := open(t, table, policy, im.Source)
		p := uffdtest.Spawn(t, one(testPages))
		early := uffdtest.Op{Pages: []int{3, 9, 10, 64, 100, 513, 1000, 1001, 2047}, Write: true}
		done := make(chan error, 1)
		go func() {
			_, err := p.Do(early)
			done <- err
		}()
		if err := s.Attach(t.Context(), p.Guest); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := s.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
		var ops []uffdtest.Op
		ops = append(ops, uffdtest.Op{Pages: append(seq(11, 64), append(seq(101, 512), seq(1002, 2047)...)...)})
		sums, err := p.Do(ops...)
		if err != nil {
			t.Fatal(err)
		}
		im.check(t, ops, sums)
		// What was written is not overwritten by what is installed later.
		sums, err = p.Do(uffdtest.Op{Pages: early.Pages})
		if err != nil {
			t.Fatal(err)
		}
		for i, page := range early.Pages {
			if sums[0][i] == im.sums[page] {
				t.Errorf("%s: the guest's write to page %d is lost", policy, page)
			}
		}
		p.Kill()
		s.Close()
	}
}

// Pages that the guest gives back read as zeros, whatever was there, whatever
// is being prefetched, and however many threads fault around.
func TestRemove(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	record(t, table, im, seq(0, testPages))
	for _, policy := range []string{"lazy", "stream", "reap", "resident", "parallel"} {
		t.Run(policy, func(t *testing.T) {
			for round := range 8 {
				s := open(t, table, policy, im.Source)
				p := uffdtest.Spawn(t, one(testPages))
				if err := s.Attach(t.Context(), p.Guest); err != nil {
					t.Fatal(err)
				}
				gone := seq(200+round*50, 800+round*50) // holes, data; present, missing
				ops := []uffdtest.Op{
					{Pages: seq(150, 300)}, // some of them are there
					{Pages: gone, Remove: true},
					{Pages: gone[100:300], Remove: true, Repeat: 5},
					{Pages: shuffled(testPages, 3)},
				}
				done := make(chan error, 1)
				go func() {
					_, err := p.Do(ops...)
					done <- err
				}()
				if err := s.Install(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err, s.Err())
				}
				after := uffdtest.Op{Pages: seq(0, testPages)}
				if _, err := p.Do(uffdtest.Op{Pages: gone, Remove: true}); err != nil {
					t.Fatal(err)
				}
				sums, err := p.Do(after)
				if err != nil {
					t.Fatal(err)
				}
				want := &image{sums: append([]uint32(nil), im.sums...)}
				for _, page := range gone {
					want.sums[page] = 0
				}
				want.check(t, []uffdtest.Op{after}, sums)
				p.Kill()
				s.Close()
			}
		})
	}
}

// The process dies in the middle: the session ends quietly, nothing has failed.
func TestProcessDies(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	for _, handover := range []bool{false, true} {
		for _, policy := range []string{"lazy", "resident"} {
			s := open(t, table, policy, im.Source)
			p := uffdtest.Spawn(t, uffdtest.Options{Sizes: []uint64{testPages * pageSize}, Handover: handover})
			if err := s.Attach(t.Context(), p.Guest); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := p.Do(uffdtest.Op{Pages: seq(0, testPages), Pause: time.Microsecond, Repeat: 1000})
				done <- err
			}()
			_ = p.Cmd.Process.Kill()
			if err := <-done; err == nil {
				t.Error("the process lived on")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if s.Err() != nil {
				t.Errorf("failed: %v", s.Err())
			}
		}
	}
}

// The memory file is cut short under a running guest: no SIGBUS, no hang; the
// session fails with the reason, and its owner can kill the instance.
func TestMemoryFileCut(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	s := open(t, table, "lazy", im.Source)
	p := restore(t, s, one(testPages))
	if err := os.Truncate(im.Path, im.Size/2); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(uffdtest.Op{Pages: seq(0, testPages)})
		done <- err
	}()
	select {
	case <-s.Failed():
	case <-time.After(20 * time.Second):
		t.Fatal("the session never failed")
	}
	if s.Err() == nil || !strings.Contains(s.Err().Error(), "cut short") {
		t.Errorf("reason: %v", s.Err())
	}
	p.Kill()
	if err := <-done; err == nil {
		t.Error("the guest went on")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, policy := range table.Names() {
		pol, err := table.Lookup(policy)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := pol.Open(t.Context(), im.Source); err == nil {
			s.Close()
			t.Errorf("%s opened a memory file of half the size", policy)
		}
	}
}

// damage is what can be wrong with a working-set file.
func TestDamagedWorkingSet(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	path := filepath.Join(im.Dir, workingset.SetFile)
	record(t, table, im, shuffled(testPages, 5))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":         func(b []byte) []byte { return nil },
		"header":        func(b []byte) []byte { b[70] ^= 1; return b },
		"short":         func(b []byte) []byte { return b[:len(b)-4096] },
		"first content": func(b []byte) []byte { b[len(b)-700*4096] ^= 1; return b },
		"last content":  func(b []byte) []byte { b[len(b)-1] ^= 0x80; return b },
		"other snapshot": func(b []byte) []byte {
			b[64] ^= 1
			return b
		},
	} {
		for _, policy := range []string{"reap", "wsfile", "stream"} {
			t.Run(name+"/"+policy, func(t *testing.T) {
				if err := os.WriteFile(path, damage(append([]byte(nil), good...)), 0o600); err != nil {
					t.Fatal(err)
				}
				for start := 0; ; start++ {
					s := open(t, table, policy, im.Source)
					p := restore(t, s, one(testPages))
					ops := []uffdtest.Op{{Pages: shuffled(testPages, 9)}, {Pages: shuffled(testPages, 10)}}
					sums, err := p.Do(ops...)
					if err != nil {
						t.Fatal(err)
					}
					im.check(t, ops, sums)
					s.Responded()
					p.Kill()
					s.Close()
					st := s.Stats()
					if st.Note == "" {
						t.Fatalf("start %d: %+v", start, st)
					}
					if st.Recorded {
						break // refused at once or, when only the contents are wrong, by the second start
					}
					if start == 1 {
						t.Fatalf("not recorded anew: %+v", st)
					}
				}
				// From the new one it starts again.
				s := open(t, table, policy, im.Source)
				p := restore(t, s, one(testPages))
				ops := []uffdtest.Op{{Pages: seq(0, testPages)}}
				sums, err := p.Do(ops...)
				if err != nil {
					t.Fatal(err)
				}
				im.check(t, ops, sums)
				p.Kill()
				s.Close()
				if st := s.Stats(); st.Prefetched < testPages/2 {
					t.Errorf("after recording anew: %+v", st)
				}
			})
		}
	}
}

// A session that comes upon damage removes what it read, not what another has
// put there since.
func TestDamageDoesNotRemoveANewerSet(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	path := filepath.Join(im.Dir, workingset.SetFile)
	record(t, table, im, shuffled(testPages, 5))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(good)
	bad[len(bad)-700*pageSize] ^= 1
	for _, policy := range []string{"reap", "wsfile", "stream"} {
		for _, newer := range []bool{true, false} {
			if err := atomicfile.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, table, policy, im.Source)
			if newer {
				if err := atomicfile.WriteFile(path, good, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p := restore(t, s, one(testPages))
			until(t, s, "it is told", func(st api.MemoryStats) bool { return strings.Contains(st.Note, "not used") })
			p.Kill()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			now, err := os.ReadFile(path)
			switch {
			case newer && (err != nil || !bytes.Equal(now, good)):
				t.Errorf("%s: the newer working set is gone: %v; %s", policy, err, s.Stats().Note)
			case !newer && !errors.Is(err, os.ErrNotExist):
				t.Errorf("%s: the damaged one is still there: %v; %s", policy, err, s.Stats().Note)
			}
		}
	}
}

// The recording holds the invocation and nothing later, in order; it belongs to
// the snapshot: another daemon finds it.
func TestRecording(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	s := open(t, table, "stream", im.Source)
	p := restore(t, s, one(testPages))
	other := open(t, table, "stream", im.Source) // does not record too
	order := shuffled(testPages, 2)[:500]
	if _, err := p.Do(uffdtest.Op{Pages: order}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(im.Dir, workingset.TraceFile)); !errors.Is(err, os.ErrNotExist) {
		t.Error("there is a trace before the response")
	}
	s.Responded()
	s.Responded()
	if _, err := p.Do(uffdtest.Op{Pages: seq(0, testPages)}); err != nil { // the VMM's shutdown, say
		t.Fatal(err)
	}
	p.Kill()
	s.Close()
	other.Close()
	if !s.Stats().Recorded || other.Stats().Recorded {
		t.Errorf("%+v %+v", s.Stats(), other.Stats())
	}
	trace, err := workingset.LoadTrace(im.Dir, workingset.Of{SnapshotID: im.SnapshotID, MemorySize: im.Size})
	if err != nil {
		t.Fatal(err)
	}
	if len(trace.Touches) != len(order) {
		t.Fatalf("%d touches, want %d", len(trace.Touches), len(order))
	}
	var last time.Duration
	for i, touch := range trace.Touches {
		if int(touch.Page) != order[i] || touch.After < last {
			t.Fatalf("touch %d: %+v, want page %d", i, touch, order[i])
		}
		last = touch.After
	}
	restarted := newPolicies(t)
	s = open(t, restarted, "reap", im.Source)
	p = restore(t, s, one(testPages))
	ops := []uffdtest.Op{{Pages: order}}
	sums, err := p.Do(ops...)
	if err != nil {
		t.Fatal(err)
	}
	im.check(t, ops, sums)
	p.Kill()
	s.Close()
	if st := s.Stats(); st.Prefetched != 500 || st.Faults != 0 || st.Note != "" {
		t.Errorf("%+v", st)
	}
}

// An invocation without a response leaves no recording, and a snapshot that was
// deleted meanwhile is not brought back.
func TestRecordingDiscarded(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	s := open(t, table, "reap", im.Source)
	p := restore(t, s, one(testPages))
	if _, err := p.Do(uffdtest.Op{Pages: seq(0, 100)}); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	s.Close()
	if entries, _ := os.ReadDir(im.Dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	s = open(t, table, "reap", im.Source)
	p = restore(t, s, one(testPages))
	if _, err := p.Do(uffdtest.Op{Pages: seq(0, 100)}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(im.Dir); err != nil {
		t.Fatal(err)
	}
	s.Responded()
	p.Kill()
	s.Close()
	if _, err := os.Stat(im.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the snapshot's directory is back")
	}
	if s.Stats().Note == "" {
		t.Error("nothing said")
	}
}

// What was recorded of an invocation that got no whole answer is dropped, under
// every policy that records, and the next restore records in its place, though
// the instance lives on.
func TestAbandonedRecording(t *testing.T) {
	for _, policy := range []string{"parallel", "wsfile", "reap", "stream"} {
		t.Run(policy, func(t *testing.T) {
			im, table := newImage(t, testPages), newPolicies(t)
			first := open(t, table, policy, im.Source)
			p := restore(t, first, one(testPages))
			if _, err := p.Do(uffdtest.Op{Pages: seq(0, 10)}); err != nil {
				t.Fatal(err)
			}
			first.Abandoned()
			first.Responded() // the instance's next: too late
			if entries, _ := os.ReadDir(im.Dir); len(entries) != 1 {
				t.Errorf("recorded all the same: %v", entries)
			}
			second := open(t, table, policy, im.Source)
			q := restore(t, second, one(testPages))
			if _, err := q.Do(uffdtest.Op{Pages: seq(0, 200)}); err != nil {
				t.Fatal(err)
			}
			second.Responded()
			q.Kill()
			second.Close()
			if !second.Stats().Recorded || first.Stats().Recorded {
				t.Errorf("first %+v, second %+v: want the second recorded", first.Stats(), second.Stats())
			}
			p.Kill()
			first.Close()
			if trace, err := workingset.LoadTrace(im.Dir, workingset.Of{SnapshotID: im.SnapshotID, MemorySize: im.Size}); err != nil || len(trace.Touches) != 200 {
				t.Errorf("the trace has %v: %v; want 200 pages", trace, err)
			}
		})
	}
}

// Memory that cannot be served is refused, and its FD closed.
func TestAttachRefuses(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, 64), newPolicies(t)
	s := open(t, table, "lazy", im.Source)
	p := uffdtest.Spawn(t, one(128))
	if err := s.Attach(t.Context(), p.Guest); err == nil || !strings.Contains(err.Error(), "reaches to offset") {
		t.Errorf("more memory than the snapshot's: %v", err)
	}
	s = open(t, table, "lazy", im.Source)
	p = uffdtest.Spawn(t, one(64))
	p.Guest.Regions[0].PageSize, p.Guest.Regions[0].Size, p.Guest.Regions[0].HostAddr = 2<<20, 2<<20, 4<<20
	if err := s.Attach(t.Context(), p.Guest); err == nil || !strings.Contains(err.Error(), "huge pages") {
		t.Errorf("huge pages: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = open(t, table, "lazy", im.Source)
	p = uffdtest.Spawn(t, one(64))
	if err := s.Attach(ctx, p.Guest); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Closing at any time, with faults under way, before memory is there, twice.
func TestCloseAnyTime(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	record(t, table, im, seq(0, testPages))
	for _, policy := range table.Names() {
		s := open(t, table, policy, im.Source)
		s.Prefetch()
		s.Close()
		if policy == "mmap" {
			continue
		}
		for wait := range 5 {
			s := open(t, table, policy, im.Source)
			p := uffdtest.Spawn(t, one(testPages))
			if err := s.Attach(t.Context(), p.Guest); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = p.Do(uffdtest.Op{Pages: seq(0, testPages)}, uffdtest.Op{Pages: seq(0, testPages), Remove: true, Repeat: 3})
			}()
			time.Sleep(time.Duration(wait) * 200 * time.Microsecond)
			s.Close()
			s.Close()
			p.Kill()
			<-done
		}
	}
	if used, waiting := table.Buffers(); used != 0 || waiting != 0 {
		t.Errorf("%d buffers are not back, %d readers wait", used, waiting)
	}
}

// A page is there already, put there without waking (as a prefetch may), while
// a thread waits on it: the fault that is still to be answered wakes it.
func TestWakeOfPresentPage(t *testing.T) {
	im, table := newImage(t, 64), newPolicies(t)
	s := open(t, table, "lazy", im.Source)
	p := uffdtest.Spawn(t, one(64))
	done := make(chan error, 1)
	var sums [][]uint32
	go func() {
		var err error
		sums, err = p.Do(uffdtest.Op{Pages: []int{5}}, uffdtest.Op{Pages: []int{5}, Kernel: true})
		done <- err
	}()
	if ok, err := p.FD.Poll(10 * time.Second); !ok || err != nil {
		t.Fatal("no fault", err)
	}
	page := make([]byte, pageSize)
	page[0] = 42
	if _, err := p.FD.Copy(p.Regions[0].HostAddr+5*pageSize, page, userfaultfd.DontWake); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatal("nobody woke it, and it went on", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := s.Attach(t.Context(), p.Guest); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err, s.Err())
	}
	for _, got := range sums {
		if got[0] != uffdtest.Sum(page) {
			t.Errorf("sum %08x", got[0])
		}
	}
}

// What was given back before the prefetch comes is not brought back by it.
func TestRemoveBeforeInstall(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	record(t, table, im, seq(0, testPages))
	for _, policy := range []string{"reap", "wsfile", "parallel"} {
		s := open(t, table, policy, im.Source)
		p := uffdtest.Spawn(t, one(testPages))
		if err := s.Attach(t.Context(), p.Guest); err != nil {
			t.Fatal(err)
		}
		gone := seq(100, 700)
		if _, err := p.Do(uffdtest.Op{Pages: seq(90, 120)}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Do(uffdtest.Op{Pages: gone, Remove: true}); err != nil {
			t.Fatal(err)
		}
		if err := s.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
		op := uffdtest.Op{Pages: seq(0, testPages)}
		sums, err := p.Do(op)
		if err != nil {
			t.Fatal(err)
		}
		want := &image{sums: append([]uint32(nil), im.sums...)}
		for _, page := range gone {
			want.sums[page] = 0
		}
		want.check(t, []uffdtest.Op{op}, sums)
		p.Kill()
		s.Close()
	}
}
