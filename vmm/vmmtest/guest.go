package vmmtest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/testenv"
)

// drivers are the modules of the suite's guest: disk and network, on either transport.
var drivers = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"}

// packGuest makes an initramfs of the suite's own init and the drivers.
func packGuest(t testing.TB, k kernel.Kernel) string {
	t.Helper()
	wanted := drivers
	if generation(t, k) {
		wanted = append(slices.Clone(drivers), initramfs.Generation)
	}
	b, err := initramfs.PackInit(testenv.Program(t, "vmm/vmmtest/init"), k, wanted)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// generation says whether the kernel has a driver for a VM's generation id.
func generation(t testing.TB, k kernel.Kernel) bool {
	t.Helper()
	has, err := initramfs.Has(k, initramfs.Generation)
	if err != nil {
		t.Fatal(err)
	}
	return has
}
