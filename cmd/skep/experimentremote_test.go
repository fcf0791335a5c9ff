package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// What a daemon may change is copied; a root disk is shared, or left out.
func TestCopyNode(t *testing.T) {
	from := t.TempDir()
	for name, data := range map[string]string{"skep.db": "db", "kernels/initramfs": "cpio", "images/ab/image.json": "{}", "images/ab/rootfs.ext4": "disk"} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(from, "images", ".claim"), 0o600); err != nil { // a lock is nobody's data
		t.Fatal(err)
	}
	for disks, want := range map[bool][]string{
		true:  {"images/ab/image.json", "images/ab/rootfs.ext4", "kernels/initramfs", "skep.db"},
		false: {"kernels/initramfs", "skep.db"},
	} {
		to := filepath.Join(t.TempDir(), "node")
		if err := copyNode(to, from, disks); err != nil {
			t.Fatal(err)
		}
		var got []string
		err := filepath.WalkDir(to, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				name, _ := filepath.Rel(to, path)
				got = append(got, name)
			}
			return err
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("with disks %v: %v, %v; want %v", disks, got, err, want)
		}
		for _, name := range got {
			a, err := os.Stat(filepath.Join(from, name))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.Stat(filepath.Join(to, name))
			if err != nil {
				t.Fatal(err)
			}
			if shared := filepath.Ext(name) == ".ext4"; os.SameFile(a, b) != shared || a.Size() != b.Size() || a.Mode() != b.Mode() {
				t.Errorf("%s: the same file: %v", name, !shared)
			}
		}
	}
}
