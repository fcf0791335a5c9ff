package memory_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// slowPages is a snapshot's memory that is not in a file of this host, as far as
// sessions see: some of its pages are read only when a test lets them be.
type slowPages struct {
	file  *os.File
	pages int
	held  func(page uint32) bool
	fault error // of the reads of held pages, when they are let go

	letGo  chan struct{}
	asked  atomic.Int32 // reads of held pages that are under way or over
	broken atomic.Int32 // of them, that were broken off
	closed atomic.Int32
}

// slow has an image's memory come from slowPages.
func slow(t *testing.T, im *image, held func(page uint32) bool) (*slowPages, memory.Source) {
	t.Helper()
	f, err := os.Open(im.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s := &slowPages{file: f, pages: int(im.Size / pageSize), held: held, letGo: make(chan struct{})}
	src := im.Source
	src.Path = ""
	src.Open = func(context.Context) (memory.Pages, error) { return s, nil }
	return s, src
}

func (s *slowPages) Data() ([]memory.Extent, error) {
	var out []memory.Extent
	for p := range uint32(s.pages) {
		if p/8%3 != 2 { // as in newImage
			out = append(out, memory.Extent{First: p, Pages: 1})
		}
	}
	return out, nil
}

func (s *slowPages) holds(p []byte, first uint32) bool {
	for i := range uint32(len(p) / pageSize) {
		if s.held(first + i) {
			return true
		}
	}
	return false
}

func (s *slowPages) ReadNow(p []byte, first uint32) (bool, error) {
	if s.holds(p, first) || first%2 == 0 { // some of the others are at hand
		return false, nil
	}
	_, err := s.file.ReadAt(p, int64(first)*pageSize)
	return err == nil, err
}

func (s *slowPages) Read(ctx context.Context, p []byte, first uint32) error {
	if s.holds(p, first) {
		s.asked.Add(1)
		select {
		case <-s.letGo:
		case <-ctx.Done():
			s.broken.Add(1)
			return context.Cause(ctx)
		}
		if s.fault != nil {
			return s.fault
		}
	}
	_, err := s.file.ReadAt(p, int64(first)*pageSize)
	return err
}

func (s *slowPages) Close() error { s.closed.Add(1); return nil }

func just(page uint32) func(uint32) bool { return func(p uint32) bool { return p == page } }

// While one page is not to be had, all others are: faults of other threads are served
// and what is planned is installed. Who waits for it gets it when it comes, however many
// they are.
func TestSlowReadStopsNobody(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	record(t, table, im, seq(1000, testPages))
	for _, policy := range []string{"lazy", "stream", "reap"} {
		t.Run(policy, func(t *testing.T) {
			pages, src := slow(t, im, just(5))
			s := open(t, table, policy, src)
			p := restore(t, s, one(testPages))
			ops := []uffdtest.Op{{Pages: []int{5, 6, 4}}, {Pages: []int{5}}, {Pages: []int{5}, Write: false, Kernel: true}, {Pages: append(seq(24, 1000), seq(1000, testPages)...)}}
			var sums [][]uint32
			done := make(chan error, 1)
			go func() {
				var err error
				sums, err = p.Do(ops...)
				done <- err
			}()
			until(t, s, "the others", func(st api.MemoryStats) bool { return st.Faults+st.Prefetched+st.ZeroedAhead >= testPages-24 })
			if pages.asked.Load() != 1 {
				t.Errorf("it is read %d times", pages.asked.Load())
			}
			select {
			case err := <-done:
				t.Fatal("the page was there before it was read", err)
			default:
			}
			close(pages.letGo)
			if err := <-done; err != nil {
				t.Fatal(err, s.Err())
			}
			im.check(t, ops, sums)
			p.Kill()
			if err := s.Close(); err != nil || pages.closed.Load() != 1 {
				t.Errorf("%v, closed %d times", err, pages.closed.Load())
			}
		})
	}
}

// The same of a slow disk, whose page is read in place since it is the only one that is
// asked for: another goroutine takes over. The session ends when the read has.
func TestSlowDiskStopsNobody(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := newImage(t, testPages), newPolicies(t)
	for round := range 4 {
		if err := chill(im.Path); err != nil {
			t.Fatal(err)
		}
		s := open(t, table, "lazy", im.Source)
		p := restore(t, s, one(testPages))
		release := table.HoldReads()
		zeros, ops := seq(16, 24), []uffdtest.Op{{Pages: []int{5}}, {Pages: []int{5}, Pause: 30 * time.Millisecond}, {Pages: seq(16, 24), Pause: 20 * time.Millisecond}, {Pages: []int{100, 200}, Pause: 20 * time.Millisecond}}
		var sums [][]uint32
		done := make(chan error, 1)
		go func() {
			var err error
			sums, err = p.Do(ops...)
			done <- err
		}()
		until(t, s, "the zeros", func(st api.MemoryStats) bool { return st.ZeroPages >= int64(len(zeros)) })
		select {
		case err := <-done:
			release()
			if err == nil {
				t.Skip("what is cached is not dropped by this file system: run it with TMPDIR on a disk")
			}
			t.Fatal(err, s.Err())
		default:
		}
		if round == 3 { // it ends meanwhile
			p.Kill()
			<-done
			release()
			s.Close()
			return
		}
		release()
		if err := <-done; err != nil {
			t.Fatal(err, s.Err())
		}
		im.check(t, ops, sums)
		all := uffdtest.Op{Pages: shuffled(testPages, 5)}
		if sums, err := p.Do(all, all); err != nil {
			t.Fatal(err, s.Err())
		} else {
			im.check(t, []uffdtest.Op{all, all}, sums)
		}
		p.Kill()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// chill drops a file from the page cache.
func chill(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// A page that the guest gives back while it is read for it is zeros when it comes, and so
// are its neighbours.
func TestRemovedWhileRead(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := denseImage(t, testPages), newPolicies(t)
	for name, held := range map[string]func(uint32) bool{"page": just(3), "cluster": func(p uint32) bool { return p == 3 || p == 9 }} {
		t.Run(name, func(t *testing.T) {
			pages, src := slow(t, im, held)
			s := open(t, table, "stream", src)
			p := restore(t, s, one(testPages))
			done := make(chan error, 1)
			var sums [][]uint32
			go func() {
				var err error
				sums, err = p.Do(uffdtest.Op{Pages: []int{3}}, uffdtest.Op{Pages: seq(2, 12), Remove: true, Pause: 300 * time.Millisecond}, uffdtest.Op{Pages: []int{9}, Pause: 100 * time.Millisecond})
				done <- err
			}()
			time.Sleep(600 * time.Millisecond) // the removal has been read, or is: either way it counts
			close(pages.letGo)
			if err := <-done; err != nil {
				t.Fatal(err, s.Err())
			}
			after := uffdtest.Op{Pages: seq(0, 16)}
			got, err := p.Do(after)
			if err != nil {
				t.Fatal(err)
			}
			want := &image{sums: append([]uint32(nil), im.sums...)}
			for _, page := range seq(2, 12) {
				want.sums[page] = 0
			}
			want.check(t, []uffdtest.Op{after}, got)
			if sums[0][0] != 0 {
				t.Errorf("who waited saw sum %08x of a page that is given back", sums[0][0])
			}
			p.Kill()
			s.Close()
		})
	}
}

// A page that cannot be had ends the guest, and the reason says which and why; so does
// one that takes too long, and a session that ends breaks reads off.
func TestPageCannotBeHad(t *testing.T) {
	testenv.NoLeaks(t)
	im := newImage(t, testPages)
	for name, tc := range map[string]struct {
		limit time.Duration
		fault error
		let   bool
		want  string
		blame bool
	}{
		"refused":   {0, errors.New("no such chunk"), true, "reading page 5 of the snapshot's memory for a fault: no such chunk", false},
		"damaged":   {0, errors.Join(memory.ErrRead, io.ErrUnexpectedEOF), true, "unexpected EOF", true},
		"too slow":  {100 * time.Millisecond, nil, false, "reading page 5 of the snapshot's memory for a fault: it took longer than 100ms", false},
		"given up ": {0, nil, false, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			table := memory.New(memory.Options{ReadLimit: tc.limit})
			defer table.Close()
			pages, src := slow(t, im, just(5))
			pages.fault = tc.fault
			s := open(t, table, "lazy", src)
			p := restore(t, s, one(testPages))
			var child sync.WaitGroup
			child.Go(func() { _, _ = p.Do(uffdtest.Op{Pages: []int{5}}) }) // ends when it is killed
			if tc.let {
				close(pages.letGo)
			}
			if tc.want != "" {
				select {
				case <-s.Failed():
				case <-time.After(20 * time.Second):
					t.Fatal("the guest waits on")
				}
				if err := s.Err(); !strings.Contains(err.Error(), tc.want) || errors.Is(err, memory.ErrRead) != tc.blame {
					t.Errorf("%v, want %q", err, tc.want)
				}
			} else {
				for pages.asked.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			p.Kill()
			child.Wait()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if !tc.let && pages.broken.Load() != 1 {
				t.Error("the read was not broken off")
			}
		})
	}
}

// Memory that is not in a file of this host cannot be mapped, and what is wrong with it is
// said when a session is opened.
func TestMemoryElsewhere(t *testing.T) {
	im, table := newImage(t, testPages), newPolicies(t)
	_, src := slow(t, im, just(5))
	mmap, err := table.Lookup("mmap")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mmap.Open(t.Context(), src); err == nil || !strings.Contains(err.Error(), "not in a file") {
		t.Errorf("mapped: %v", err)
	}
	lazy, _ := table.Lookup("lazy")
	away := errors.New("the store is away")
	src.Open = func(context.Context) (memory.Pages, error) { return nil, away }
	if _, err := lazy.Open(t.Context(), src); !errors.Is(err, away) {
		t.Errorf("%v", err)
	}
	wrong := &slowPages{pages: testPages + 64}
	src.Open = func(context.Context) (memory.Pages, error) { return wrong, nil }
	if _, err := lazy.Open(t.Context(), src); err == nil || wrong.closed.Load() != 1 {
		t.Errorf("more pages than there are: %v, closed %d times", err, wrong.closed.Load())
	}
}
