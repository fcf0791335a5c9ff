package base

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// newReadyHost is one whose snapshots match.
func newReadyHost(t *testing.T) *Host {
	h := newHost(t)
	h.info = vmm.Info{Name: "v", Version: "1", Accel: "tcg"}
	return h
}

func wanted(disk string) Spec {
	return Spec{Disk: image.Image{Digest: "sha256:i" + disk, DiskDigest: disk}, MemoryMiB: 1, VCPUs: 1}
}

// publish makes a ready snapshot without any guest.
func publish(t *testing.T, h *Host, s Spec, key string) string {
	t.Helper()
	stage, err := h.snaps.Stage(s.readyFamily(key))
	if err != nil {
		t.Fatal(err)
	}
	for path, size := range map[string]int64{stage.State(): 3, stage.Memory(): 1 << 20} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := h.wantReady(s, key)
	m, err := stage.Publish(t.Context(), snapshot.Manifest{Spec: w.Spec, VMM: h.info, HostKernel: w.HostKernel, ImageDigest: w.ImageDigest,
		DiskDigest: w.DiskDigest, VCPUs: 1, MemoryMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	return m.ID
}

func find(t *testing.T, h *Host, s Spec, key string) (*Ready, string) {
	t.Helper()
	r, why, err := h.Ready(t.Context(), s, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	return r, why
}

// One makes a ready snapshot, and the others do not wait for it; what is there is
// found by those that it is for.
func TestReadyIsMadeOnce(t *testing.T) {
	h, s := newReadyHost(t), wanted("d")
	first, _ := find(t, h, s, "key")
	if first == nil || first.There() {
		t.Fatalf("the first: %+v", first)
	}
	if r, why := find(t, h, s, "key"); r != nil || why == "" {
		t.Errorf("the second, at the same time: %+v, %q", r, why)
	}
	if r, _ := find(t, h, s, "other"); r == nil || r.There() {
		t.Errorf("one of another key: %+v", r)
	}
	first.Release()
	id := publish(t, h, s, "key")
	r, _ := find(t, h, s, "key")
	if r == nil || !r.There() {
		t.Fatalf("once it is there: %+v", r)
	}
	big := s
	big.MemoryMiB = 2
	if r, _ := find(t, h, big, "key"); r == nil || r.There() {
		t.Errorf("one of another size: %+v", r)
	}
	r.GiveUp("it does not answer")
	if ids, err := h.snaps.IDs(s.readyFamily("key")); err != nil || slices.Contains(ids, id) {
		t.Errorf("given up, there are %v, %v", ids, err)
	}
	if r, why := find(t, h, s, "key"); r != nil || why != "it does not answer" {
		t.Errorf("after that: %+v, %q", r, why)
	}
	// Not for ever.
	old := time.Now().Add(-2 * unreadyFor)
	if err := os.Chtimes(h.note(s, "key"), old, old); err != nil {
		t.Fatal(err)
	}
	if r, _ := find(t, h, s, "key"); r == nil {
		t.Error("it is noted for ever")
	}
	if err := h.forget(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(h.dir("unready")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Of an image the newest are kept.
func TestMostReady(t *testing.T) {
	h, s, other := newReadyHost(t), wanted("d"), wanted("e")
	publish(t, h, other, "key")
	var ids []string
	for i := range mostReady + 3 {
		ids = append(ids, publish(t, h, s, fmt.Sprint("key", i)))
		time.Sleep(2 * time.Millisecond) // whose time differs
	}
	if err := h.bound(readyOf(s.Disk.DiskDigest)); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		_, err := os.Stat(filepath.Join(h.dir("snapshots"), id))
		if (err == nil) != (i >= 3) {
			t.Errorf("snapshot %d: %v", i, err)
		}
	}
	if r, _ := find(t, h, other, "key"); !r.There() {
		t.Error("another image's is gone")
	}
}
