package test

import (
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestInspectMemory asks what guests use of a snapshot's memory, before it was
// restored and after; and removes the image when nothing needs it any more.
func TestInspectMemory(t *testing.T) {
	d := start(t, "shells = 0") // a guest that waits has touched a part already, which is not prefetched
	d.hello("hello")
	list, err := d.client.Snapshots(t.Context(), "hello")
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	inspect := func() api.SnapshotMemory {
		t.Helper()
		m, err := d.client.SnapshotMemory(t.Context(), list[0].ID, true)
		if err != nil || m.Problem != "" || m.DataPages == 0 || m.Map.Data.Pages() != m.DataPages {
			t.Fatalf("%+v, %v", m, err)
		}
		return m
	}
	if m := inspect(); m.Trace.Summary != nil || m.WorkingSet.Summary != nil || m.Trial.Summary == nil {
		t.Errorf("before a restore: %+v", m)
	}
	for range 2 {
		a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/", Policy: "stream", Start: api.StartRestore})
		if a.err != nil || a.status != 200 {
			t.Fatalf("%+v", a)
		}
		// It is recorded beside the instance's further life.
		for deadline := time.Now().Add(20 * time.Second); inspect().WorkingSet.Summary == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no working set is recorded")
			}
		}
	}
	recs := d.records("hello", 2)
	// What the first start needs is nearly what its deployment has seen.
	if first := recs[1].Memory; !first.Recorded || first.Prefetched < 500 || first.Faults > first.Prefetched/4 {
		t.Errorf("the first restore: %+v", *first)
	}
	rec, m := recs[0], inspect()
	trace, set := m.Trace.Summary, m.WorkingSet.Summary
	if trace == nil || set == nil {
		t.Fatalf("after a restore: %+v", m)
	}
	if trace.Pages < 500 || trace.Contiguity < 1 || trace.Span <= trace.First || trace.Writes == 0 || set.Pages != m.Map.Prefetched.Pages() {
		t.Errorf("trace: %+v, working set: %+v", trace, set)
	}
	// Every second miss may bring 14 other pages.
	if rec.Memory.Prefetched == 0 || rec.Memory.Prefetched > set.Pages+7*rec.Memory.Missed {
		t.Errorf("%d pages were prefetched of a working set of %d, with %d missed", rec.Memory.Prefetched, set.Pages, rec.Memory.Missed)
	}
	if again, err := d.client.Invocation(t.Context(), rec.ID); err != nil || again.Memory.Prefetched != rec.Memory.Prefetched {
		t.Errorf("the record by its id: %+v, %v", again, err)
	}
	if removed, err := d.client.PruneImages(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("removed what is in use: %+v, %v", removed, err)
	}
	if err := d.client.RemoveFunction(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	if removed, err := d.client.PruneImages(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("removed %+v, %v", removed, err)
	}
}
