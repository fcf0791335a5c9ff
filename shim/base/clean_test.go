package base

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// newHost is one with stores and nothing to start microVMs with.
func newHost(t *testing.T) *Host {
	t.Helper()
	h := &Host{cfg: config.Config{DataDir: testenv.Dir(t)}, log: slog.New(slog.DiscardHandler)}
	for _, dir := range []string{"mem", "claims", "unready"} {
		must(t, os.Mkdir(h.dir(dir), 0o700))
	}
	var err error
	h.Images, err = image.Open(h.dir("images"), image.Options{})
	must(t, err)
	t.Cleanup(func() { h.Images.Close() })
	h.snaps, err = snapshot.Open(h.dir("snapshots"))
	must(t, err)
	return h
}

// snapshotOf publishes one of a guest of that image.
func snapshotOf(t *testing.T, h *Host, function, image string) *snapshot.Snapshot {
	t.Helper()
	stage, err := h.snaps.Stage(function)
	must(t, err)
	must(t, os.WriteFile(stage.State(), []byte("state"), 0o600))
	must(t, os.WriteFile(stage.Memory(), make([]byte, 1<<20), 0o600))
	m := snapshot.Manifest{Reason: "base", VMM: vmm.Info{Name: "qemu"}, ImageDigest: image, VCPUs: 1, MemoryMiB: 1}
	published, err := stage.Publish(t.Context(), m)
	must(t, err)
	snap, err := h.snaps.Acquire(t.Context(), published.ID, snapshot.Want{Function: function, ImageDigest: image, VCPUs: 1, MemoryMiB: 1, VMM: m.VMM})
	must(t, err)
	t.Cleanup(snap.Release)
	return snap
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// What the dead have left is cleared away, and what the living use is not.
func TestClean(t *testing.T) {
	must(t, Clean(config.Config{DataDir: "/nonexistent/skep"}))
	h := newHost(t)
	// A snapshot that was removed while two used it.
	living, dying := snapshotOf(t, h, "base-a", "a"), snapshotOf(t, h, "base-b", "b")
	lock, err := filelock.Hold(dying.Dir)
	must(t, err)
	dying.Release()
	must(t, errors.Join(h.snaps.Remove(living.Manifest.ID), h.snaps.Remove(dying.Manifest.ID)))
	if !there(living.Dir) || !there(dying.Dir) {
		t.Fatal("a snapshot went from under its user")
	}
	must(t, lock.Release()) // as the kernel does for who is killed
	memory, err := atomicfile.Stage(h.dir("mem"), "living")
	must(t, err)
	claim, err := filelock.Claim(context.Background(), filepath.Join(h.dir("claims"), "living"))
	must(t, err)
	dead := []string{dying.Dir, h.dir("mem/.tmp-dead-1"), h.dir("snapshots/.tmp-base-1"), h.dir("claims/dead"), h.dir("images/.lock-dead")}
	for _, path := range dead[1:3] {
		must(t, os.Mkdir(path, 0o700))
		must(t, os.WriteFile(filepath.Join(path, "memory"), []byte("x"), 0o600))
	}
	for _, path := range dead[3:] {
		must(t, unix.Mkfifo(path, 0o600))
	}
	must(t, Clean(h.cfg))
	for _, path := range dead {
		if there(path) {
			t.Errorf("%s is left", path)
		}
	}
	for _, path := range []string{living.Dir, memory.Dir, h.dir("claims/living")} {
		if !there(path) {
			t.Errorf("%s was somebody's", path)
		}
	}
	living.Release()
	must(t, errors.Join(claim.Release(), memory.Close(), Clean(h.cfg)))
	for _, dir := range []string{"mem", "claims", "snapshots"} {
		if left, _ := os.ReadDir(h.dir(dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// The root disk and snapshots of an image go with it, ten minutes after their
// last use; those of another one, and a snapshot of something else, stay.
func TestCollect(t *testing.T) {
	testenv.Need(t, "mkfs")
	h := newHost(t)
	tree := testenv.Dir(t)
	const grace = 10 * time.Minute
	disk := func(name string) string {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(tree, "name"), []byte(name), 0o644))
		img, err := h.Images.FetchTree(t.Context(), "container:"+name, tree)
		must(t, err)
		return img.Digest
	}
	kept, gone, busy := disk("kept"), disk("gone"), disk("busy")
	snaps := map[string]*snapshot.Snapshot{}
	for function, image := range map[string]string{"base-kept": kept, "base-gone": gone, "other-gone": gone, "base-busy": busy, "ready-gone": gone, "ready-kept": kept} {
		snaps[function] = snapshotOf(t, h, function, image)
	}
	asked := 0
	known := func(context.Context, []string) (map[string]bool, error) {
		asked++
		return map[string]bool{kept: true}, nil
	}
	// ago has it be so long since the images were used, and since the last collection.
	ago := func(images, collection time.Duration) {
		t.Helper()
		at := time.Now().Add(-images)
		for _, d := range []string{kept, gone, busy} {
			_ = os.Chtimes(filepath.Join(h.dir("images"), d[len("sha256:"):]), at, at)
		}
		at = time.Now().Add(-collection)
		must(t, os.Chtimes(h.dir(".collected"), at, at))
	}
	collect := func(asks int, left int) {
		t.Helper()
		before := asked
		must(t, h.Collect(t.Context(), grace, known))
		if list, _ := h.Images.List(); asked-before != asks || len(list) != left {
			t.Errorf("asked %d times, and %d images are left: want %d and %d", asked-before, len(list), asks, left)
		}
	}
	// By another shim, for which a container runs.
	other, err := image.Open(h.dir("images"), image.Options{})
	must(t, err)
	defer other.Close()
	must(t, errors.Join(h.Images.Close(), other.Use(busy)))

	collect(1, 3) // nothing is old
	ago(grace+time.Minute, grace-time.Minute)
	collect(0, 3) // it is too soon again
	ago(grace-time.Minute, grace+time.Minute)
	collect(1, 3)
	ago(grace+time.Minute, grace+time.Minute)
	collect(1, 2) // gone, and nothing else
	for function, snap := range snaps {
		if at, err := h.snaps.Manifest(snap.Manifest.ID); (err == nil) == (function == "base-gone" || function == "ready-gone") {
			t.Errorf("the snapshot of %s: %v, %v", function, at.ID, err)
		}
	}
	if !there(snaps["base-gone"].Dir) {
		t.Error("a snapshot's files went from under its user")
	}
	snaps["base-gone"].Release()
	if there(snaps["base-gone"].Dir) {
		t.Error("a snapshot's files stay after its last use")
	}
	must(t, other.Close())
	ago(grace+time.Minute, grace+time.Minute)
	collect(1, 1)
	// Where containerd does not answer nothing is removed.
	ago(grace+time.Minute, grace+time.Minute)
	down := errors.New("containerd is down")
	err = h.Collect(t.Context(), grace, func(context.Context, []string) (map[string]bool, error) { return nil, down })
	if list, _ := h.Images.List(); !errors.Is(err, down) || len(list) != 1 {
		t.Errorf("%v, %v are left", err, list)
	}
}
