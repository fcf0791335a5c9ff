package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

var _ vmm.Sheller = (*VMM)(nil)

// Shell starts a machine's process ahead of its restore: with empty memory, all
// that it opens opened, and root given up; its device state loaded, where somebody
// serves the memory that this touches. See vmm.Sheller.
func (v *VMM) Shell(ctx context.Context, spec vmm.RestoreSpec) (vmm.Shell, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := vmm.Check(spec.Config, spec.Host, maxVCPUs); err != nil {
		return nil, err
	}
	l := launch{host: host, config: spec.Config, on: spec.Host, state: spec.State}
	m, g, err := l.empty(ctx)
	if err != nil {
		return nil, fmt.Errorf("starting a process ahead: %w", err)
	}
	if spec.Memory.Attach != nil {
		return v.loaded(ctx, m, g, spec)
	}
	restore := func(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) error {
		began := time.Now()
		if err := attach(ctx, g); err != nil {
			return fmt.Errorf("handing over guest memory: %w", err)
		}
		m.timings.Spawn = time.Since(began)
		if err := m.load(ctx); err != nil {
			return fmt.Errorf("loading device state: %w", err)
		}
		v.log.Debug("restored", "vmm", "qemu", "instance", spec.ID, "pid", m.PID(), "ahead", true)
		return nil
	}
	// The process first, whose memory the userfaultfd guards.
	end := func() error { return errors.Join(m.Kill(), g.FD.Close()) }
	return vmm.NewShell(m, restore, end), nil
}

// loaded has the machine of a process with empty memory load its device state, with
// which it waits: of a restore nothing is left but to say who has its memory from then on.
func (v *VMM) loaded(ctx context.Context, m *machine, g userfaultfd.Guest, spec vmm.RestoreSpec) (vmm.Shell, error) {
	err := spec.Memory.Attach(ctx, g)
	if err != nil {
		err = fmt.Errorf("handing over guest memory: %w", err)
	} else if err = m.load(ctx); err != nil {
		err = fmt.Errorf("loading device state: %w", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting a process ahead: %w", err), m.Kill())
	}
	restore := func(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) error {
		began := time.Now()
		if err := attach(ctx, userfaultfd.Guest{}); err != nil {
			return fmt.Errorf("handing over guest memory: %w", err)
		}
		m.timings = vmm.Timings{Spawn: time.Since(began)}
		v.log.Debug("restored", "vmm", "qemu", "instance", spec.ID, "pid", m.PID(), "ahead", true, "loaded", true)
		return nil
	}
	return vmm.NewShell(m, restore, m.Kill), nil
}
