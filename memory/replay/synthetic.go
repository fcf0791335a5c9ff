package replay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

// Synthetic describes a snapshot that is made up. The zero value is 8192 pages
// in 2624 runs of a 512 MiB guest, which is what a small Python function needs.
type Synthetic struct {
	MemorySize int64 // bytes
	Pages      int
	Runs       int
	Seed       uint64
}

// WithDefaults fills in what is zero.
func (y Synthetic) WithDefaults() Synthetic {
	if y.MemorySize == 0 {
		y.MemorySize = 512 << 20
	}
	if y.Pages == 0 {
		y.Pages = 8192
	}
	if y.Runs == 0 {
		y.Runs = max(y.Pages*2624/8192, 1)
	}
	return y
}

// syntheticPause is the time from one first touch to the next, as a recording
// would have it: with a fault of 20 µs in it. Real functions take longer.
const syntheticPause = 60 * time.Microsecond

// Make writes the memory file and the trace to dir, which must exist, and
// returns them. Every page of the memory file holds data, so that reads of it
// are real. The trace visits the runs in random order, each from its beginning.
func (y Synthetic) Make(dir string) (memory.Source, error) {
	y = y.WithDefaults()
	total := int(y.MemorySize / pageSize)
	// Every run needs a gap behind it, or it would be one with the next.
	if y.Runs > y.Pages || y.Pages+y.Runs > total {
		return memory.Source{}, fmt.Errorf("a trace of %d pages in %d runs does not fit into %d pages", y.Pages, y.Runs, total)
	}
	src := memory.Source{SnapshotID: fmt.Sprintf("synthetic-%d-%d-%d", y.Pages, y.Runs, y.Seed), Path: filepath.Join(dir, "memory"), Size: y.MemorySize, Dir: dir}
	rng := rand.New(rand.NewPCG(y.Seed, 1))
	if err := fill(src.Path, src.Size, y.Seed); err != nil {
		return src, fmt.Errorf("making a memory file: %w", err)
	}
	lengths := split(rng, y.Pages, y.Runs)
	gaps := split(rng, total-y.Pages, y.Runs)
	first := make([]int, y.Runs)
	at := 0
	for i := range lengths {
		first[i] = at
		at += lengths[i] + gaps[i]
	}
	t := &workingset.Trace{Of: workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size}}
	for _, i := range rng.Perm(y.Runs) {
		for p := range lengths[i] {
			t.Touches = append(t.Touches, workingset.Touch{Page: uint32(first[i] + p), After: time.Duration(len(t.Touches)) * syntheticPause})
		}
	}
	return src, workingset.SaveTrace(dir, t)
}

// split cuts n into k parts of at least 1, at random.
func split(rng *rand.Rand, n, k int) []int {
	parts := make([]int, k)
	for i := range parts {
		parts[i] = 1
	}
	for range n - k {
		parts[rng.IntN(k)]++
	}
	return parts
}

func fill(path string, size int64, seed uint64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var key [32]byte
	key[0] = byte(seed)
	random := rand.NewChaCha8(key)
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		_, _ = random.Read(buf) // cannot fail
		if _, err := f.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}
