package memory_test

import (
	"testing"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

// BenchmarkOpen is what a cold start waits for before its VMM is started: of 8,192 recorded
// pages in 4,096 runs of two.
func BenchmarkOpen(b *testing.B) {
	for _, policy := range []string{"mmap", "lazy", "reap", "stream"} {
		b.Run(policy, func(b *testing.B) {
			table := memory.New(memory.Options{})
			defer table.Close()
			im := denseImage(b, 16384)
			trace := &workingset.Trace{Of: workingset.Of{SnapshotID: im.SnapshotID, MemorySize: im.Size}}
			for _, at := range shuffled(4096, 1) {
				for i := range 2 {
					trace.Touches = append(trace.Touches, workingset.Touch{Page: uint32(at*4 + i)})
				}
			}
			if err := workingset.SaveTrace(im.Dir, trace); err != nil {
				b.Fatal(err)
			}
			if err := memory.EnsureSet(b.Context(), im.Source, trace); err != nil {
				b.Fatal(err)
			}
			p, err := table.Lookup(policy)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				s, err := p.Open(b.Context(), im.Source)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
