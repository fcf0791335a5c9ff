package firecracker

import (
	"os"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/vmmtest"
)

// real is the Firecracker that SKEP_FIRECRACKER names, or the PATH's.
func real(t testing.TB, jailer string) vmm.VMM {
	t.Helper()
	testenv.Need(t, "firecracker", "kvm")
	return New(Options{Binary: os.Getenv("SKEP_FIRECRACKER"), Jailer: jailer})
}

// lacks: a guest that powers itself off halts its vCPUs, and Firecracker goes
// on until it is killed. skep's agent reboots instead.
const lacks = "poweroff"

// TestConformance runs under the jailer, if one is there.
func TestConformance(t *testing.T) {
	vmmtest.Run(t, func(t testing.TB) vmm.VMM { return real(t, "") }, lacks)
}

func TestConformanceWithoutJailer(t *testing.T) {
	vmmtest.Run(t, func(t testing.TB) vmm.VMM { return real(t, "none") }, lacks)
}

func BenchmarkStart(b *testing.B) {
	vmmtest.Bench(b, func(t testing.TB) vmm.VMM { return real(t, "") })
}

func BenchmarkStartWithoutJailer(b *testing.B) {
	vmmtest.Bench(b, func(t testing.TB) vmm.VMM { return real(t, "none") })
}
