package memory_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

func TestMain(m *testing.M) {
	uffdtest.Main()
	os.Exit(m.Run())
}

const pageSize = 4096

// image is a memory file with known contents.
type image struct {
	memory.Source
	sums []uint32
}

// newImage has a hole for every third group of 8 pages.
func newImage(t testing.TB, pages int) *image {
	t.Helper()
	return imageWithout(t, pages, func(page int) bool { return page/8%3 == 2 })
}

// denseImage has contents for every page.
func denseImage(t testing.TB, pages int) *image {
	t.Helper()
	return imageWithout(t, pages, func(int) bool { return false })
}

func imageWithout(t testing.TB, pages int, hole func(page int) bool) *image {
	t.Helper()
	dir := t.TempDir()
	im := &image{Source: memory.Source{SnapshotID: "test-snapshot", Path: filepath.Join(dir, "memory"), Size: int64(pages) * pageSize, Dir: dir}}
	f, err := os.Create(im.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(im.Size); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, pageSize)
	for p := range pages {
		if hole(p) {
			im.sums = append(im.sums, 0)
			continue
		}
		for i := 0; i < pageSize; i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], uint64(p)<<32|uint64(i)|1)
		}
		im.sums = append(im.sums, uffdtest.Sum(buf))
		if _, err := f.WriteAt(buf, int64(p)*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	return im
}

// check compares what the guest saw with the memory file.
func (im *image) check(t testing.TB, ops []uffdtest.Op, sums [][]uint32) {
	t.Helper()
	bad := 0
	for i, op := range ops {
		for j, p := range op.Pages {
			if sums[i][j] != im.sums[p] {
				if bad++; bad < 5 {
					t.Errorf("op %d: page %d has sum %08x, want %08x", i, p, sums[i][j], im.sums[p])
				}
			}
		}
	}
	if bad > 0 {
		t.Fatalf("%d pages are wrong", bad)
	}
}

func open(t testing.TB, table *memory.Policies, policy string, src memory.Source) memory.Session {
	t.Helper()
	p, err := table.Lookup(policy)
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Open(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// restore starts a faulting process and gives its memory to a session.
func restore(t testing.TB, s memory.Session, o uffdtest.Options) *uffdtest.Process {
	t.Helper()
	p := uffdtest.Spawn(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Attach(ctx, p.Guest); err != nil {
		t.Fatal(err)
	}
	if err := s.Install(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

func newPolicies(t testing.TB) *memory.Policies {
	table := memory.New(memory.Options{})
	t.Cleanup(func() { table.Close() })
	return table
}

func shuffled(pages int, seed uint64) []int {
	return rand.New(rand.NewPCG(seed, 1)).Perm(pages)
}

// Every policy, both ways of taking over memory, one region and two: several
// threads touch every page in different orders, and see the snapshot.
func TestContents(t *testing.T) {
	const pages = 2048
	im := newImage(t, pages)
	table := newPolicies(t)
	for _, policy := range table.Names() {
		if policy == "mmap" {
			continue
		}
		for name, o := range map[string]uffdtest.Options{
			"injected":  {Sizes: []uint64{pages * pageSize}},
			"two":       {Sizes: []uint64{1000 * pageSize, 1048 * pageSize}},
			"handover":  {Sizes: []uint64{1000 * pageSize, 1048 * pageSize}, Handover: true},
			"in pieces": {Sizes: []uint64{pages * pageSize}, Handover: true, Apart: true},
		} {
			t.Run(policy+"/"+name, func(t *testing.T) {
				s := open(t, table, policy, im.Source)
				p := restore(t, s, o)
				var ops []uffdtest.Op
				for i := range 4 {
					ops = append(ops, uffdtest.Op{Pages: shuffled(pages, uint64(i/2)), Kernel: i == 3})
				}
				sums, err := p.Do(ops...)
				if err != nil {
					t.Fatal(err, s.Err())
				}
				im.check(t, ops, sums)
				s.Responded()
				p.Kill()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				t.Logf("%+v", s.Stats())
			})
		}
	}
}
