package snapshot

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

func TestPublishOnFullDisk(t *testing.T) {
	// Memory and state fill the file system to the last page; none is zero, so
	// that no hole makes room for the manifest.
	dir := smallDisk(t)
	s := open(t, dir)
	g, err := s.Stage("hello")
	must(t, err)
	must(t, os.WriteFile(g.Memory(), bytes.Repeat([]byte{1}, testMiB<<20), 0o600))
	err = os.WriteFile(g.State(), bytes.Repeat([]byte{1}, 2<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_, err = g.Publish(t.Context(), example())
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("%v, want that the disk is full and what to do", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := s.Newest(t.Context(), wanted(example())); len(err) != 0 {
		t.Errorf("the store knows of it: %v", err)
	}
}

// A full disk is when snapshots are removed, in use or not.
func TestRemoveOnFullDisk(t *testing.T) {
	dir := smallDisk(t)
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	used, err := s.Acquire(t.Context(), id, wanted(example()))
	must(t, err)
	err = os.WriteFile(dir+"/rest", bytes.Repeat([]byte{1}, 16<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	must(t, s.Remove(id))
	if ids := idsOf(t, open(t, dir)); len(ids) != 0 {
		t.Errorf("after a crash it is back: %v", ids)
	}
	used.Release()
}

// smallDisk is a file system of 9 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "root")
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=9M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}
