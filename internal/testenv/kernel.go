package testenv

import (
	"path/filepath"
	"testing"
)

// KernelStore returns the directory with the guest kernel that tests boot. All
// tests of a user share it; nobody removes it.
func KernelStore(t testing.TB) string {
	t.Helper()
	Need(t, "kernel")
	dir, err := kernelsDir()
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(found) == 0 {
		t.Skipf("no guest kernel in %s; to run this test: %s", dir, needs["kernel"].cure)
	}
	return dir
}
