package firecracker

import (
	"context"
	"fmt"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

var _ vmm.Sheller = (*VMM)(nil)

// Shell starts a machine's process ahead of its restore: in its jail, its API
// listening, without memory yet. See vmm.Sheller.
func (v *VMM) Shell(ctx context.Context, spec vmm.RestoreSpec) (vmm.Shell, error) {
	spec.Memory = vmm.Memory{}
	m, load, err := v.prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("starting a process ahead: %w", err)
	}
	restore := func(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) error {
		m.timings.Spawn = 0 // it was spent ahead: no part of this restore
		if err := m.loadAttached(ctx, load, attach); err != nil {
			return err
		}
		v.log.Debug("restored", "vmm", "firecracker", "instance", spec.ID, "pid", m.PID(), "ahead", true)
		return nil
	}
	return vmm.NewShell(m, restore, m.Kill), nil
}
