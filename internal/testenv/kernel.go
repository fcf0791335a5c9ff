package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest/kernel"
)

// KernelsEnv names the environment variable with the directory of guest
// kernels that tests boot. Without it, it is the one that `skep setup` uses.
const KernelsEnv = "SKEP_TEST_KERNELS"

// KernelStore returns the directory with the guest kernel that tests boot,
// which is fetched when it is not there. All tests of a user share it; nobody
// removes it.
func KernelStore(t testing.TB) string {
	t.Helper()
	dir, _ := fetched(t)
	return dir
}

// Kernel returns the guest kernel that tests boot, fetched when it is not there.
func Kernel(t testing.TB) kernel.Kernel {
	t.Helper()
	_, k := fetched(t)
	return k
}

func fetched(t testing.TB) (string, kernel.Kernel) {
	t.Helper()
	Need(t, "kernel")
	dir, err := kernelsDir()
	if err != nil {
		t.Fatal(err)
	}
	k, err := fetchKernel(t, dir)
	switch {
	case err == nil:
	case required("kernel"):
		t.Fatalf("a guest kernel is required here (%s=%s): %v", RequireEnv, os.Getenv(RequireEnv), err)
	default:
		t.Skipf("needs a guest kernel: %v; to run this test: %s", err, needs["kernel"].cure)
	}
	return dir, k
}

var fetching sync.Mutex // so that one process asks once

// fetchKernel fetches the kernel once, however many packages' tests run.
func fetchKernel(t testing.TB, dir string) (kernel.Kernel, error) {
	if k, err := kernel.Default(dir); err == nil {
		return k, nil
	}
	fetching.Lock()
	defer fetching.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return kernel.Kernel{}, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return kernel.Kernel{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return kernel.Kernel{}, fmt.Errorf("waiting for another test to fetch the kernel: %w", err)
	}
	return kernel.Fetch(t.Context(), dir, func(step string) { t.Log(step) })
}

func probeKernel() error {
	dir, err := kernelsDir()
	if err != nil {
		return err
	}
	_, err = kernel.Default(dir)
	if !errors.Is(err, kernel.ErrNone) {
		return err
	}
	if apt := probeCommand("apt-get")(); apt != nil {
		return fmt.Errorf("%w, and it cannot be fetched: %w", err, apt)
	}
	return nil // KernelStore fetches it
}

func kernelsDir() (string, error) {
	if dir := os.Getenv(KernelsEnv); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: set %s or HOME: %w", KernelsEnv, err)
	}
	return filepath.Join(cache, "skep", "kernels"), nil
}
