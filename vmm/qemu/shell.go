package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

var _ vmm.Sheller = (*VMM)(nil)

// shell is a QEMU process with empty memory that waits for device state. All
// that it opened it has opened, and it has given up root.
type shell struct {
	v    *VMM
	id   string
	m    *machine
	g    userfaultfd.Guest
	used atomic.Bool
}

// Shell starts a machine's process ahead of its restore; see vmm.Sheller.
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
	return &shell{v: v, id: spec.ID, m: m, g: g}, nil
}

func (s *shell) PID() int              { return s.m.PID() }
func (s *shell) Done() <-chan struct{} { return s.m.Done() }

func (s *shell) Kill() error {
	if s.used.Swap(true) {
		return nil
	}
	return s.end()
}

// end: the process first, whose memory the userfaultfd guards.
func (s *shell) end() error { return errors.Join(s.m.Kill(), s.g.FD.Close()) }

func (s *shell) Restore(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (vmm.Machine, error) {
	if s.used.Swap(true) {
		return nil, errors.New("restoring: the process that was started ahead is used up")
	}
	began := time.Now()
	select {
	case <-s.m.Done():
		return nil, errors.Join(fmt.Errorf("restoring: %w", s.m.Err()), s.end())
	default:
	}
	if err := attach(ctx, s.g); err != nil {
		return nil, errors.Join(fmt.Errorf("restoring: handing over guest memory: %w", err), s.m.Kill())
	}
	s.m.timings.Spawn = time.Since(began)
	if err := s.m.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("restoring: loading device state: %w", err), s.m.Kill())
	}
	s.v.log.Debug("restored", "vmm", "qemu", "instance", s.id, "pid", s.m.PID(), "ahead", true)
	return s.m, nil
}
