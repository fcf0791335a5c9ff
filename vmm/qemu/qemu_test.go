package qemu_test

import (
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/qemu"
	"github.com/skep-dev/skep/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	testenv.Need(t, "qemu")
	vmmtest.Run(t, func(testing.TB) vmm.VMM { return qemu.New(qemu.Options{}) })
}

func BenchmarkStart(b *testing.B) {
	testenv.Need(b, "qemu")
	vmmtest.Bench(b, func(testing.TB) vmm.VMM { return qemu.New(qemu.Options{}) })
}
