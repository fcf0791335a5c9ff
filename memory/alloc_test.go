package memory_test

import (
	"runtime"
	"testing"

	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// Serving a fault allocates nothing.
func TestFaultsAllocateNothing(t *testing.T) {
	const pages = 8192
	im, table := newImage(t, pages), newPolicies(t)
	s := open(t, table, "lazy", im.Source)
	p := restore(t, s, one(pages))
	if _, err := p.Do(uffdtest.Op{Pages: seq(0, 100)}); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := p.Do(uffdtest.Op{Pages: seq(100, pages)}); err != nil { // answers with one message
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	// What the conversation with the child allocates is a few objects per message.
	most := uint64(1000 + pages*dropped/100) // a buffer that was dropped is made anew
	if n := after.Mallocs - before.Mallocs; n > most {
		t.Errorf("%d faults allocated %d objects", pages-100, n)
	}
}
