package transfer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer/mark"
	"github.com/skep-dev/skep/vmm"
)

var digest = strings.Repeat("ab", 32)

func manifest() snapshot.Manifest {
	return snapshot.Manifest{VMM: vmm.Info{Name: "qemu", Version: "7.2", Accel: "tcg"}, GuestKernel: "k", Initramfs: "i", Agent: "a", ImageDigest: digest, DiskDigest: digest, Spec: "s", VCPUs: 1, MemoryMiB: 1}
}

func want(m snapshot.Manifest) snapshot.Want {
	return snapshot.Want{Function: "hello", ImageDigest: m.ImageDigest, DiskDigest: m.DiskDigest, GuestKernel: m.GuestKernel, Initramfs: m.Initramfs, Spec: m.Spec, VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, VMM: m.VMM}
}

func open(t *testing.T) *snapshot.Store {
	t.Helper()
	s, err := snapshot.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// disks are those of a host: none, or that of the one image.
type disks struct {
	img  image.Image
	here bool
}

func (d *disks) Get(string) (image.Image, error) {
	if !d.here {
		return image.Image{}, image.ErrNotFound
	}
	return d.img, nil
}

func (d *disks) Import(_ context.Context, img image.Image, fill func(*os.File) error) (image.Image, error) {
	f, err := os.OpenFile(d.img.Disk, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = fill(f)
	}
	d.here = err == nil
	return img, err
}

// TestThereAndBack pushes a snapshot and pulls it on another host.
func TestThereAndBack(t *testing.T) {
	here, there := open(t), open(t)
	stage, err := here.Stage("hello")
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("guest memory"), 1<<20/12+1)[:1<<20]
	for path, b := range map[string][]byte{stage.State(): []byte("device state"), stage.Memory(): content} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	made, err := stage.Publish(t.Context(), manifest())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := here.Take(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	store, err := remote.New(remote.Options{Bucket: &remotetest.Memory{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Find(t.Context(), store, want(snap.Manifest)); err == nil || err.Error() != "the object store has none" {
		t.Errorf("in an empty store: %v", err)
	}
	img := image.Image{Digest: digest, DiskDigest: digest, Disk: filepath.Join(t.TempDir(), "disk"), DiskBytes: 9}
	if err := os.WriteFile(img.Disk, []byte("root disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	push := func() {
		t.Helper()
		if !mark.Due(snap.Dir) {
			t.Error("it is not due")
		}
		if _, err := Push(t.Context(), store, snap, img, slog.New(slog.DiscardHandler), nil); err != nil {
			t.Fatal(err)
		}
		if mark.Due(snap.Dir) {
			t.Error("it is due again")
		}
	}
	push()
	if err := os.WriteFile(filepath.Join(snap.TraceDir(), workingset.SetFile), []byte("working set"), 0o600); err != nil {
		t.Fatal(err)
	}
	push()

	other := want(snap.Manifest)
	other.GuestKernel = "another"
	if _, err := Find(t.Context(), store, other); err == nil || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("for another kernel: %v", err)
	}
	found, err := Find(t.Context(), store, want(snap.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	d := &disks{img: image.Image{Digest: digest, DiskDigest: digest, Disk: filepath.Join(t.TempDir(), "disk")}}
	for range 2 { // the second finds it here
		if err := found.Disk(t.Context(), store, d); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(d.img.Disk); string(b) != "root disk" {
		t.Errorf("its root disk is %q, %v", b, err)
	}
	if _, err := found.Pull(t.Context(), store, there, nil); err != nil {
		t.Fatal(err)
	}
	came, err := there.Take(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer came.Release()
	if err := found.Came(came.Dir); err != nil || mark.Due(came.Dir) {
		t.Errorf("what has come is to be pushed: %v", err)
	}
	for name, want := range map[string]string{snapshot.PartMemory: string(content), snapshot.PartState: "device state", traceDir + workingset.SetFile: "working set"} {
		if b, err := os.ReadFile(filepath.Join(came.Dir, name)); string(b) != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(b), err, len(want))
		}
	}
	d.img.DiskDigest = "another"
	if err := found.Disk(t.Context(), store, d); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("its root disk has digest %s, the one of image %s here another", digest, digest)) {
		t.Errorf("with another root disk here: %v", err)
	}
}
