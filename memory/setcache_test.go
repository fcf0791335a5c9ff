package memory

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// writeSet writes a working set of pages from 0 on, which is as old as a start would find it.
func writeSet(t *testing.T, src Source, pages uint32) {
	t.Helper()
	runs := []workingset.Run{{Pages: pages}}
	if err := workingset.SaveSet(src.Dir, src.of(), runs, func([]byte, uint32) error { return nil }); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(src.Dir, workingset.SetFile), old, old); err != nil {
		t.Fatal(err)
	}
}

// A working set is decoded once, and anew when it is another, in whatever way; it is
// no other snapshot's.
func TestSetCache(t *testing.T) {
	var c setCache
	src := Source{SnapshotID: "a", Size: 1 << 20, Dir: t.TempDir()}
	load := func(want uint32) readySet {
		t.Helper()
		r, f, err := c.load(src)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if r.Runs[0].Pages != want || r.layout.pages != int64(want) {
			t.Errorf("%d pages, want %d", r.Runs[0].Pages, want)
		}
		return r
	}
	writeSet(t, src, 8)
	first := load(8)
	if load(8).Set != first.Set {
		t.Error("decoded twice")
	}
	writeSet(t, src, 9)
	load(9)
	path := filepath.Join(src.Dir, workingset.SetFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[70] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.load(src); !errors.Is(err, workingset.ErrFormat) {
		t.Errorf("changed in place: %v", err)
	}
	writeSet(t, src, 8)
	load(8)
	other := src
	other.SnapshotID = "b"
	if _, _, err := c.load(other); !errors.Is(err, workingset.ErrFormat) {
		t.Errorf("another's: %v", err)
	}
	for i := range 3 { // more than may be remembered
		c.put(fileID{ino: uint64(i)}, readySet{first.Set, &layout{runs: make([]workingset.Run, maxCachedRuns/2)}})
	}
	c.put(fileID{ino: 9}, readySet{first.Set, &layout{runs: make([]workingset.Run, maxCachedRuns+1)}})
	n := 0
	for _, r := range c.sets {
		n += len(r.layout.runs)
	}
	if _, ok := c.sets[fileID{ino: 2}]; n != c.runs || n > maxCachedRuns || !ok {
		t.Errorf("%d sets of %d runs, counted %d; the last is there: %v", len(c.sets), n, c.runs, ok)
	}
}
