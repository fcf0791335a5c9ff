package qemu_test

import (
	"testing"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/qemu"
	"github.com/skep-dev/skep/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	if _, err := qemu.Probe(t.Context()); err != nil {
		t.Skip(err)
	}
	vmmtest.Run(t, func(testing.TB) vmm.VMM { return qemu.New(qemu.Options{}) })
}
