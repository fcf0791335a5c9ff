package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// received puts the parts of a snapshot of another store into one of this store's places.
func received(t *testing.T, s *Store, m Manifest, from string) *Staging {
	t.Helper()
	g, err := s.Receive(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{PartState, PartMemory} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(g.Dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(g.Trace(), "ws"), []byte("a working set"), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestReceive(t *testing.T) {
	made, other := open(t, t.TempDir()), open(t, t.TempDir())
	id, _ := publish(t, made, nil)
	snap, err := made.Take(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	g := received(t, other, snap.Manifest, snap.Dir)
	if err := os.Truncate(g.Memory(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Adopt(t.Context(), snap.Manifest); err == nil || !strings.Contains(err.Error(), "memory has 0 bytes") {
		t.Errorf("a memory that was cut off: %v", err)
	}
	if ids, _ := other.IDs(""); len(ids) != 0 {
		t.Errorf("there is %v", ids)
	}
	if _, err := received(t, other, snap.Manifest, snap.Dir).Adopt(t.Context(), snap.Manifest); err != nil {
		t.Fatal(err)
	}
	here, reasons := other.Newest(t.Context(), wanted(snap.Manifest))
	if here == nil {
		t.Fatal(reasons)
	}
	if b, err := os.ReadFile(filepath.Join(here.TraceDir(), "ws")); err != nil || string(b) != "a working set" {
		t.Errorf("its trace: %q, %v", b, err)
	}
	// Twice is as good, but for one that was removed and is in use.
	if _, err := received(t, other, snap.Manifest, snap.Dir).Adopt(t.Context(), snap.Manifest); err != nil {
		t.Error(err)
	}
	if err := other.Remove(id); err != nil {
		t.Fatal(err)
	}
	if _, err := received(t, other, snap.Manifest, snap.Dir).Adopt(t.Context(), snap.Manifest); err == nil {
		t.Error("it came back while it was removed and in use")
	}
	here.Release()
	if _, err := received(t, other, snap.Manifest, snap.Dir).Adopt(t.Context(), snap.Manifest); err != nil {
		t.Error(err)
	}
}

// TestFit has a snapshot's fit be equal to that of whoever it matches, and to no other's.
func TestFit(t *testing.T) {
	m := example()
	w := wanted(m)
	if m.Fit() != w.Fit() {
		t.Errorf("%s, %s", m.Fit(), w.Fit())
	}
	for field, change := range map[string]func(*Want){
		"function": func(w *Want) { w.Function = "x" }, "image": func(w *Want) { w.ImageDigest = "x" }, "disk": func(w *Want) { w.DiskDigest = "x" },
		"kernel": func(w *Want) { w.GuestKernel = "x" }, "initramfs": func(w *Want) { w.Initramfs = "x" }, "spec": func(w *Want) { w.Spec = "x" },
		"vcpus": func(w *Want) { w.VCPUs = 2 }, "memory": func(w *Want) { w.MemoryMiB = 1 }, "vmm": func(w *Want) { w.VMM.Name = "x" },
		"version": func(w *Want) { w.VMM.Version = "x" }, "acceleration": func(w *Want) { w.VMM.Accel = "kvm" }, "machine": func(w *Want) { w.VMM.Machine = "x" },
	} {
		w := wanted(m)
		change(&w)
		if m.Match(w) == nil || m.Fit() == w.Fit() {
			t.Errorf("another %s: %v, %s", field, m.Match(w), w.Fit())
		}
	}
	w.HostKernel, w.CPU.Model = "x", "y" // of no matter to an emulated processor
	if m.Match(w) != nil || m.Fit() != w.Fit() {
		t.Errorf("another host: %v", m.Match(w))
	}
	m.VMM.Accel, w.VMM.Accel = "kvm", "kvm"
	if m.Fit() == w.Fit() {
		t.Error("another host under KVM fits")
	}
}
