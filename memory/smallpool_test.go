package memory_test

import (
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// smallPool is a table of policies that read through four buffers of 1 MiB.
func smallPool(t *testing.T) *memory.Policies {
	t.Helper()
	table := memory.New(memory.Options{BufferBytes: 4 << 20})
	t.Cleanup(func() {
		if used, waiting := table.Buffers(); used != 0 || waiting != 0 {
			t.Errorf("%d buffers are in use, and %d readers wait, after all sessions' end", used, waiting)
		}
		table.Close()
	})
	return table
}

const largePages = 8192 // 32 MiB, eight times the pool

// A working set, or a guest, of many times the pool is installed all the same,
// whole, under every policy.
func TestLargerThanThePool(t *testing.T) {
	testenv.NoLeaks(t)
	im, table := denseImage(t, largePages), smallPool(t)
	order := shuffled(largePages, 3)
	record(t, table, im, order)
	for _, policy := range []string{"parallel", "wsfile", "reap", "stream", "resident"} {
		t.Run(policy, func(t *testing.T) {
			s := open(t, table, policy, im.Source)
			p := restore(t, s, one(largePages))
			until(t, s, "all of it", func(st api.MemoryStats) bool { return st.Prefetched == largePages })
			op := uffdtest.Op{Pages: order}
			sums, err := p.Do(op)
			if err != nil {
				t.Fatal(err, s.Err())
			}
			im.check(t, []uffdtest.Op{op}, sums)
			p.Kill()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if st := s.Stats(); st.Note != "" || st.Faults != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Sessions that want more than there is, whose guests are not there yet, keep
// nobody else waiting: not for buffers, and not for a turn at the disk.
func TestLargeOnesStarveNobody(t *testing.T) {
	testenv.NoLeaks(t)
	table := smallPool(t)
	small := newImage(t, 512)
	record(t, table, small, seq(0, 512))
	for _, policy := range []string{"resident", "stream"} {
		t.Run(policy, func(t *testing.T) {
			var large []memory.Session
			var images []*image
			for range 2 { // as many as there are turns
				im := denseImage(t, largePages)
				record(t, table, im, seq(0, largePages))
				s := open(t, table, policy, im.Source)
				s.Prefetch()
				large, images = append(large, s), append(images, im)
			}
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, waiting := table.Buffers(); waiting >= len(large) {
					break // each has what it may have, and wants more
				}
				if time.Now().After(end) {
					t.Fatal("the large ones want no more")
				}
			}
			for _, other := range []string{"stream", "reap", "wsfile", "parallel", "resident"} {
				s := open(t, table, other, small.Source)
				p := restore(t, s, one(512))
				small.touch(t, p, seq(0, 512)...)
				p.Kill()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if st := s.Stats(); st.Note != "" {
					t.Errorf("%s: %+v", other, st)
				}
			}
			for i, s := range large { // and they go on when their guests come
				p := restore(t, s, one(largePages))
				images[i].touch(t, p, seq(0, largePages)...)
				p.Kill()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if st := s.Stats(); st.Note != "" {
					t.Errorf("%+v", st)
				}
			}
		})
	}
}

// Nothing is read before the instance waits for nobody else: until then its
// buffers would be kept from those who could go on.
func TestNothingIsReadBeforePrefetch(t *testing.T) {
	im, table := newImage(t, testPages), smallPool(t)
	record(t, table, im, seq(0, testPages))
	for _, policy := range table.Names() {
		s := open(t, table, policy, im.Source)
		if used, waiting := table.Buffers(); used != 0 || waiting != 0 || s.Stats().BytesRead != 0 {
			t.Errorf("%s: %d buffers, %d waiting, %+v", policy, used, waiting, s.Stats())
		}
		s.Close()
		s.Prefetch() // nothing begins any more
		if used, waiting := table.Buffers(); used != 0 || waiting != 0 {
			t.Errorf("%s, closed: %d buffers, %d waiting", policy, used, waiting)
		}
	}
}
