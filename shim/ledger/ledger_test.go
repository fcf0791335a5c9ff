package ledger

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/shim/journal"
)

func open(t *testing.T, dir string, keep int) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), dir, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func write(t *testing.T, dir string, e journal.Entry) {
	t.Helper()
	if err := journal.Of(dir).Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func record(id string, at time.Time) *api.Invocation {
	return &api.Invocation{ID: id, Function: "hello-00001", Instance: "c1", Snapshot: "s", Start: api.StartRestore, Time: at.UTC(), Trace: "4bf92f3577b34da6a3ce929d0e0e4736",
		Phases: api.Phases{Spawn: 3 * time.Millisecond, Total: 9 * time.Millisecond}, Memory: &api.MemoryStats{Policy: "reap", Faults: 7},
		Container: &api.Container{ID: "full-id", Name: "user-container", Pod: "hello-1", Namespace: "default", Image: "sha256:i", Ready: "there",
			Steps: []api.Step{{Name: "disk", Began: at.UTC(), Took: time.Millisecond}}}}
}

// What a shim has written of a start and, at any later time, of its end, is one record
// with all of it, whoever has collected it.
func TestRecords(t *testing.T) {
	dir := t.TempDir()
	l, other := open(t, dir, 0), open(t, dir, 0)
	at := time.Now().Round(time.Microsecond)
	start := record("r1", at)
	write(t, dir, journal.Entry{Start: start})
	if err := other.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	exit := api.ContainerExit{Code: 137, OutOfMemory: true, Time: at.Add(time.Second).UTC()}
	write(t, dir, journal.Entry{ID: "r1", Exit: &exit})
	write(t, dir, journal.Entry{ID: "of-nothing", Exit: &exit})
	list, err := l.Invocations(t.Context(), api.InvocationQuery{Function: "hello-00001"})
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	got := list[0]
	if got.Container == nil || got.Container.Exit == nil || *got.Container.Exit != exit {
		t.Fatalf("its end is not noted: %+v", got.Container)
	}
	got.Container.Exit = nil
	if w, g := fmt.Sprintf("%+v %+v %+v", *start.Container, *start.Memory, start.Phases), fmt.Sprintf("%+v %+v %+v", *got.Container, *got.Memory, got.Phases); w != g {
		t.Errorf("it is\n%s, want\n%s", g, w)
	}
	if got.Trace != start.Trace || got.Start != start.Start || !got.Time.Equal(start.Time) {
		t.Errorf("it is %+v, want %+v", got, *start)
	}
}

// Who follows sees each record once, whoever has collected it; what is kept is bounded.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l, other := open(t, dir, 5), open(t, dir, 5)
	at := time.Now()
	write(t, dir, journal.Entry{Start: record("before", at)})
	if err := l.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := l.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var seen, want []string
	for i := range 12 {
		id := fmt.Sprint("r", i)
		want = append(want, id)
		write(t, dir, journal.Entry{Start: record(id, at.Add(time.Duration(i)))})
		if i%3 == 0 {
			if err := other.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if last, err = l.Follow(t.Context(), last, func(r api.Invocation) { seen = append(seen, r.ID) }); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %v, want %v", seen, want)
	}
	list, err := l.Invocations(t.Context(), api.InvocationQuery{})
	if err != nil || len(list) != 5 {
		t.Errorf("%d are kept, %v: want 5", len(list), err)
	}
	// It is a database like the daemon's.
	r, err := node.OpenRecords(t.Context(), filepath.Join(dir, File), 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}
