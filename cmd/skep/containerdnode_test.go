package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/testenv"
)

// A kernel that an image brings is copied once, whatever a copy has left that was cut
// short.
func TestCopyKernels(t *testing.T) {
	from, to := testenv.KernelStore(t), t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		half := filepath.Join(to, ".copy-"+e.Name())
		if err := errors.Join(os.MkdirAll(half, 0o755), os.WriteFile(filepath.Join(half, "half"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	step, err := copyKernels(from, to)
	if err != nil || step == "" {
		t.Fatalf("%q, %v", step, err)
	}
	want, err := kernel.Default(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := kernel.Default(to)
	if err != nil || got.Digest != want.Digest {
		t.Errorf("%+v, %v: want %+v", got, err, want)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(got.Path), "half")); err == nil {
		t.Error("what a copy has left is in the kernel's directory")
	}
	if step, err := copyKernels(from, to); err != nil || step != "" {
		t.Errorf("a second time: %q, %v", step, err)
	}
	if _, err := copyKernels(t.TempDir(), t.TempDir()); err == nil {
		t.Error("no kernel at all is fine")
	}
}
