package snapshot

import (
	"os"
	"strings"
	"testing"
)

// arriving has a snapshot of another store arrive in this one, without its memory's content, which it returns.
func arriving(t *testing.T, s *Store, m Manifest, from string) (*Arrival, []byte) {
	t.Helper()
	g := received(t, s, m, from)
	memory, err := os.ReadFile(g.Memory())
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{0, m.Parts[PartMemory].Size} {
		if err := os.Truncate(g.Memory(), size); err != nil {
			t.Fatal(err)
		}
	}
	a, err := g.Arrive(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return a, memory
}

// TestArrive has a snapshot be used while its memory is on its way, by nobody but who asks for that, and
// be found by all when it is whole.
func TestArrive(t *testing.T) {
	made, dir := open(t, t.TempDir()), t.TempDir()
	other := open(t, dir)
	id, _ := publish(t, made, nil)
	from, err := made.Take(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Release()
	found := func(s *Store) bool {
		ids, err := s.IDs("")
		if err != nil {
			t.Fatal(err)
		}
		return len(ids) > 0
	}
	a, memory := arriving(t, other, from.Manifest, from.Dir)
	if found(other) || found(open(t, dir)) { // which would delete what nobody uses
		t.Error("it is found before it is whole")
	}
	if _, err := received(t, other, from.Manifest, from.Dir).Arrive(t.Context(), from.Manifest); err == nil {
		t.Error("it arrives twice")
	}
	snap, err := a.Use()
	if err != nil {
		t.Fatal(err)
	}
	// Whole, but with a byte that is another: it goes with its last user.
	memory[5] ^= 1
	if err := os.WriteFile(snap.MemoryPath(), memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Complete(t.Context()); err == nil || !strings.Contains(err.Error(), "memory has") {
		t.Errorf("a memory that is another: %v", err)
	}
	if _, err := os.Stat(snap.StatePath()); err != nil || found(other) {
		t.Errorf("it went while it was in use, or is found: %v", err)
	}
	snap.Release()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	memory[5] ^= 1
	a, _ = arriving(t, other, from.Manifest, from.Dir)
	if snap, err = a.Use(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(snap.MemoryPath(), memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := a.Complete(t.Context()); err != nil || out.ID != id || !out.Usable {
		t.Errorf("%+v, %v", out, err)
	}
	a.Abort()
	snap.Release()
	for _, s := range []*Store{other, open(t, dir)} {
		here, reasons := s.Newest(t.Context(), wanted(from.Manifest))
		if here == nil {
			t.Fatal(reasons)
		}
		here.Release()
		if err := s.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestArrivalOfDeadProcess has what a process that died was fetching go when the store is opened.
func TestArrivalOfDeadProcess(t *testing.T) {
	made, dir := open(t, t.TempDir()), t.TempDir()
	id, _ := publish(t, made, nil)
	from, err := made.Take(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Release()
	a, _ := arriving(t, open(t, dir), from.Manifest, from.Dir)
	a.g.staged.Close() // as the kernel does
	open(t, dir)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := received(t, open(t, dir), from.Manifest, from.Dir).Adopt(t.Context(), from.Manifest); err != nil {
		t.Error(err)
	}
}
