package rootdisk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

func TestMain(m *testing.M) { shimtest.Main(m) }

const (
	namespace = "ns"
	layered   = "test.skep.invalid/layered:v1"
)

// A container's disk is its image's, made once of what containerd has; a root
// that is another one's, or was written to, is made of its files.
func TestDisk(t *testing.T) {
	testenv.Need(t, "mkfs")
	shimtest.Each(t, func(t *testing.T, c *shimtest.Containerd) {
		img := shimtest.Image(t, v1.Config{}, []shimtest.File{{Name: "a", Content: "lower"}, {Name: "gone", Content: "x"}}, []shimtest.File{{Name: "b", Content: "upper"}, {Name: ".wh.gone"}})
		c.Import(namespace, layered, img)
		want, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		images, err := image.Open(filepath.Join(c.Dir, "images"), image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer images.Close()
		m := &Maker{Address: c.Address, Namespace: namespace, Images: images}
		disk := func(id string, mounts []mount.Mount, target string) (image.Image, string) {
			t.Helper()
			d, err := m.Disk(t.Context(), Container{ID: id, Mounts: mounts, Target: target})
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("debugfs", "-R", "ls -p /", d.Disk).Output()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for line := range strings.Lines(string(out)) {
				if f := strings.Split(line, "/"); len(f) > 5 && f[5] != "." && f[5] != ".." && f[5] != "" && f[5] != "lost+found" {
					names = append(names, f[5])
				}
			}
			return d, strings.Join(names, " ")
		}
		target := filepath.Join(c.Dir, "rootfs")
		c.Must("-n", namespace, "container", "create", layered, "one")
		c.Must("-n", namespace, "container", "create", layered, "two")
		first, files := disk("one", mountsOf(t, c, "one"), target)
		second, _ := disk("two", mountsOf(t, c, "two"), target)
		if first.Digest != importedDigest(t, c, want.String()) || first.Disk != second.Disk || first.DiskDigest != second.DiskDigest {
			t.Errorf("the disks are %+v and %+v, want the image's, once", first, second)
		}
		if files != "a b" {
			t.Errorf("the disk has %q", files)
		}

		// Somebody writes to the root of one of them.
		for _, o := range mountsOf(t, c, "two")[0].Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				if err := os.WriteFile(filepath.Join(upper, "c"), []byte("written"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		changed, files := disk("two", mountsOf(t, c, "two"), target)
		if changed.Digest == first.Digest || files != "a b c" {
			t.Errorf("a root that was written to has disk %s with %q", changed.Digest, files)
		}

		// The image is gone, the container is not.
		c.Must("-n", namespace, "images", "delete", "--sync", layered)
		unknown, files := disk("one", mountsOf(t, c, "one"), target)
		if files != "a b" {
			t.Errorf("without the image the disk %s has %q", unknown.Digest, files)
		}
		if mounted, _ := exec.Command("mountpoint", target).CombinedOutput(); !strings.Contains(string(mounted), "not a mountpoint") {
			t.Errorf("the root is still mounted: %s", mounted)
		}

		// A root directory of its own.
		dir := filepath.Join(c.Dir, "own")
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, files := disk("own", nil, dir); files != "etc" {
			t.Errorf("a directory's disk has %q", files)
		}
		if _, err := m.Disk(t.Context(), Container{ID: "nobody", Mounts: mountsOf(t, c, "one"), Target: target}); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("the disk of a container that containerd does not know: %v", err)
		}
	})
}

// importedDigest is that of the manifest which this containerd made of an image
// as it imported it.
func importedDigest(t *testing.T, c *shimtest.Containerd, exported string) string {
	t.Helper()
	for line := range strings.Lines(c.Must("-n", namespace, "images", "list")) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == layered {
			return f[2]
		}
	}
	return exported
}

func mountsOf(t *testing.T, c *shimtest.Containerd, key string) []mount.Mount {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, err := snapshotsapi.NewSnapshotsClient(conn).Mounts(namespaces.WithNamespace(t.Context(), namespace), &snapshotsapi.MountsRequest{Snapshotter: "overlayfs", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return mount.FromProto(a.Mounts)
}
