package carrier

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/shim/base/ready"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

var digest = strings.Repeat("ab", 32)

// disks are root disks that are all the same; nil: there are none.
type disks struct{ path string }

func (d disks) Get(string) (image.Image, error) {
	if d.path == "" {
		return image.Image{}, image.ErrNotFound
	}
	return image.Image{Digest: digest, DiskDigest: digest, Disk: d.path, DiskBytes: 9}, nil
}

func host(t *testing.T, store *remote.Store) *Carrier {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "claims"), 0o700); err != nil {
		t.Fatal(err)
	}
	snaps, err := snapshot.Open(filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, []byte("root disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &Carrier{DataDir: dir, Store: store, Snapshots: snaps, Images: disks{disk}, Log: slog.New(slog.DiscardHandler)}
}

func publish(t *testing.T, c *Carrier, function string) snapshot.Manifest {
	t.Helper()
	stage, err := c.Snapshots.Stage(function)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{stage.State(): []byte("state"), stage.Memory(): make([]byte, 1<<20)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	made, err := stage.Publish(t.Context(), snapshot.Manifest{VMM: vmm.Info{Name: "qemu", Version: "7.2", Accel: "tcg"}, GuestKernel: "k", Initramfs: "i", Agent: "a",
		ImageDigest: digest, DiskDigest: digest, Spec: "s", VCPUs: 1, MemoryMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Snapshots.Manifest(made.ID)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestCarry pushes what is to be pushed, once, and no more, and pulls it on another host.
func TestCarry(t *testing.T) {
	store, err := remote.New(remote.Options{Bucket: &remotetest.Memory{}})
	if err != nil {
		t.Fatal(err)
	}
	here, there := host(t, store), host(t, store)
	made := publish(t, here, "ready-hello")
	publish(t, here, "base-hello")
	claim, err := filelock.TryClaim(filepath.Join(here.DataDir, "claims", "push"))
	if err != nil {
		t.Fatal(err)
	}
	if err := here.Push(t.Context()); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("while another pushes: %v", err)
	}
	if err := claim.Release(); err != nil {
		t.Fatal(err)
	}
	if due, err := ready.Due(here.DataDir); err != nil || len(due) != 1 || due[0] != made.ID {
		t.Errorf("due are %v, %v", due, err)
	}
	images := here.Images
	here.Images = disks{} // one whose image is gone goes, and holds up nothing
	if err := here.Push(t.Context()); err != nil {
		t.Fatal(err)
	}
	here.Images = images
	for range 2 {
		if err := here.Push(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := store.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].ID != made.ID {
		t.Fatalf("in the store: %v, %v", list, err)
	}
	want := snapshot.Want{Function: "ready-hello", ImageDigest: digest, DiskDigest: digest, GuestKernel: "k", Initramfs: "i", Spec: "another", VCPUs: 1, MemoryMiB: 1, VMM: made.VMM}
	if id, err := there.Pull(t.Context(), want); err == nil {
		t.Errorf("%s came, which is of another specification", id)
	}
	want.Spec = "s"
	for range 2 { // what is here already is as good
		if id, err := there.Pull(t.Context(), want); err != nil || id != made.ID {
			t.Fatalf("%s came, %v", id, err)
		}
	}
	if due, err := ready.Due(there.DataDir); err != nil || len(due) != 0 {
		t.Errorf("what came is to be pushed: %v, %v", due, err)
	}
	snap, reasons := there.Snapshots.Newest(t.Context(), want)
	if snap == nil {
		t.Fatal(reasons)
	}
	snap.Release()
}
