package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/skep-dev/skep/vmm"
)

// Snapshot writes device state, and lets go of guest memory; see vmm.Machine.
func (m *machine) Snapshot(ctx context.Context, state, memory string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.booted:
		return vmm.ErrNotBooted
	case m.spent:
		return errors.New("taking a snapshot: the machine was snapshotted or killed before")
	case !m.paused:
		return errors.New("taking a snapshot: the machine is not paused")
	}
	// Memory is not copied: it is a shared mapping of this file.
	err := vmm.PublishSnapshot(state, m.memoryFile, memory, func(f *os.File) error { return m.writeState(ctx, f) })
	if err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	m.memoryFile = ""
	return nil
}

func (m *machine) writeState(ctx context.Context, f *os.File) error {
	m.spent = true
	_, err := m.qmp.do(ctx,
		command{Execute: "getfd", Arguments: map[string]any{"fdname": "state"}, file: f},
		command{Execute: "migrate", Arguments: map[string]any{"uri": "fd:state"}})
	if err != nil {
		return m.explain(err)
	}
	if err := m.migrated(ctx); err != nil {
		return fmt.Errorf("writing device state: %w", err)
	}
	return nil
}
