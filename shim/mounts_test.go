package shim

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/testenv"
)

// What a mount forbids is kept; the last of two options that contradict counts.
func TestFlagsOfMounts(t *testing.T) {
	for _, tt := range []struct{ options, want []string }{
		{[]string{"rbind", "ro", "noexec", "rprivate", "ro"}, []string{"noexec", "ro"}},
		{[]string{"rro", "rnosuid", "nodev"}, []string{"nodev", "nosuid", "ro"}},
		{[]string{"ro", "rw"}, nil},
		{[]string{"rw", "ro"}, []string{"ro"}},
		{[]string{"size=64k", "mode=755"}, nil},
	} {
		if got := flagsOf(tt.options); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.options, got, tt.want)
		}
	}
}

// The guest is told of mounts in the specification's order, whether one is a file, and
// what nobody may write to.
func TestMountsOfContainer(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	log := dir + "/pods/u/containers/app/0123abcd"
	if err := os.MkdirAll(log, 0o755); err != nil { // a directory, which it is not where there is a kubelet
		t.Fatal(err)
	}
	s := plain()
	mounted(bind("/etc/app", dir, "ro"), bind("/etc/app/one", file, "ro"), bind("/tmp/message", log, "rw"), bind("/etc/hosts", file, "ro"), bind("/etc/resolv.conf", file, "rw"),
		bind("/data", "/x/io.containerd.grpc.v1.cri/containers/c/volumes/v", "rw"), specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"noexec", "size=1m"}})(s)
	c, err := translate(s)
	if err != nil {
		t.Fatal(err)
	}
	start, err := c.startOf(guest.Names{})
	if err != nil {
		t.Fatal(err)
	}
	want := []guest.Mount{
		{Path: "/etc/app", Kind: guest.MountDirectory, Options: []string{"ro"}}, {Path: "/etc/app/one", Kind: guest.MountFile, Options: []string{"ro"}},
		{Path: "/tmp/message", Kind: guest.MountDirectory}, {Path: "/data", Kind: guest.MountImage}, {Path: "/t", Bytes: 1 << 20, Mode: 0o755, Options: []string{"noexec"}}}
	if !reflect.DeepEqual(start.Mounts, want) {
		t.Errorf("mounts %+v, want %+v", start.Mounts, want)
	}
	if !slices.Contains(start.ReadonlyPaths, "/etc/hosts") || slices.Contains(start.ReadonlyPaths, "/etc/resolv.conf") {
		t.Errorf("read-only are %q", start.ReadonlyPaths)
	}
	c.ReadOnly = true
	if ro := c.readonlyPaths(); !slices.Contains(ro, "/etc/hostname") || slices.Contains(ro, "/etc/resolv.conf") {
		t.Errorf("of a root to be read %q are read-only", ro)
	}
	for _, m := range c.renewed() {
		if m.Path == "/tmp/message" {
			t.Error("what the container leaves for its host is overwritten")
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := c.startOf(guest.Names{}); err == nil {
		t.Error("what is not there can be mounted")
	}
}

// What is delivered is counted, in whole pages, and the guest has memory for it beside
// what the container may have; what is too much is refused.
func TestDeliveredIsCounted(t *testing.T) {
	for _, tt := range []struct {
		files, bytes int
		settings     settings
		want         int // MiB of a guest of 256; 0: refused
	}{
		{3, 100_000, settings{}, 256},
		{300, 1, settings{}, 320}, // pages
		{1, 16 << 20, settings{}, 320},
		{1, 16 << 20, settings{MemoryMiB: 256}, 256},
		{1, 16<<20 + 1, settings{}, 0},
		{4096, 4000, settings{}, 0}, // and their directory
	} {
		dir := t.TempDir()
		for i := range tt.files {
			f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
			if err == nil {
				err = errors.Join(f.Truncate(int64(tt.bytes)), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		c := container{MemoryMiB: 256, Settings: tt.settings, Mounts: []mount{{Path: "/x", Source: dir}}}
		mib, err := c.measure()
		if c.enlarge(mib); (err != nil) != (tt.want == 0) || err == nil && c.MemoryMiB != tt.want {
			t.Errorf("%d files of %d bytes: a guest of %d MiB, want %d; %v", tt.files, tt.bytes, c.MemoryMiB, tt.want, err)
		}
	}
}

// An emptyDir that the kubelet has limited in memory has that limit in the guest; one that
// may take all of the pod's has the guest's own, and one on a disk none.
func TestEmptyDirLimit(t *testing.T) {
	testenv.Need(t, "root")
	for options, want := range map[string]int{"size=8m": 8, "size=100k": 1, "size=1g": 0, "": 0} {
		dir := filepath.Join(t.TempDir(), emptyDirs, "d")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if options != "" {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(dir, 0)
		}
		c, err := translate(changed(mounted(bind("/cache", dir, "rw"))))
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Mounts) != 1 || c.Mounts[0].Source != "" || c.Mounts[0].SizeMiB != want {
			t.Errorf("an emptyDir with %q is %+v: want %d MiB", options, c.Mounts, want)
		}
	}
}
