package firecracker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

var _ vmm.Sheller = (*VMM)(nil)

// shell is a Firecracker process in its jail, whose API listens. It has no
// memory yet.
type shell struct {
	v    *VMM
	id   string
	m    *machine
	load snapshotLoad
	used atomic.Bool
}

// Shell starts a machine's process ahead of its restore; see vmm.Sheller.
func (v *VMM) Shell(ctx context.Context, spec vmm.RestoreSpec) (vmm.Shell, error) {
	spec.Memory = vmm.Memory{}
	m, load, err := v.prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("starting a process ahead: %w", err)
	}
	return &shell{v: v, id: spec.ID, m: m, load: load}, nil
}

func (s *shell) PID() int              { return s.m.PID() }
func (s *shell) Done() <-chan struct{} { return s.m.Done() }

func (s *shell) Kill() error {
	if s.used.Swap(true) {
		return nil
	}
	return s.m.Kill()
}

func (s *shell) Restore(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (vmm.Machine, error) {
	if s.used.Swap(true) {
		return nil, errors.New("restoring: the process that was started ahead is used up")
	}
	select {
	case <-s.m.Done():
		return nil, errors.Join(fmt.Errorf("restoring: %w", s.m.Err()), s.m.Kill())
	default:
	}
	s.m.timings.Spawn = 0 // it was spent ahead: no part of this restore
	if err := s.m.loadAttached(ctx, s.load, attach); err != nil {
		return nil, errors.Join(fmt.Errorf("restoring: %w", err), s.m.Kill())
	}
	s.v.log.Debug("restored", "vmm", "firecracker", "instance", s.id, "pid", s.m.PID(), "ahead", true)
	return s.m, nil
}
