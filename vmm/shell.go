package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// NewShell makes a Shell of a machine whose process waits. One of the two is
// called, once: restore does what is left of VMM.Restore, and the machine is
// killed when it fails; end lets go of a process that is not needed or has died.
func NewShell(m Machine, restore func(context.Context, func(context.Context, userfaultfd.Guest) error) error, end func() error) Shell {
	return &shell{m: m, restore: restore, end: end}
}

type shell struct {
	m       Machine
	restore func(context.Context, func(context.Context, userfaultfd.Guest) error) error
	end     func() error
	used    atomic.Bool
}

func (s *shell) PID() int              { return s.m.PID() }
func (s *shell) Done() <-chan struct{} { return s.m.Done() }

func (s *shell) Kill() error {
	if s.used.Swap(true) {
		return nil
	}
	return s.end()
}

func (s *shell) Restore(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (Machine, error) {
	if s.used.Swap(true) {
		return nil, errors.New("restoring: the process that was started ahead is used up")
	}
	select {
	case <-s.m.Done():
		return nil, errors.Join(fmt.Errorf("restoring: %w", s.m.Err()), s.end())
	default:
	}
	if err := s.restore(ctx, attach); err != nil {
		return nil, errors.Join(fmt.Errorf("restoring: %w", err), s.m.Kill())
	}
	return s.m, nil
}
