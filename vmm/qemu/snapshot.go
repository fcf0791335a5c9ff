package qemu

import (
	"context"
	"fmt"
	"os"

	"github.com/skep-dev/skep/vmm"
)

// Snapshot writes device state, and lets go of guest memory; see vmm.Machine.
func (m *machine) Snapshot(ctx context.Context, state, memory string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Memory is not copied: it is a shared mapping of this file.
	err := vmm.TakeSnapshot(vmm.Taking{
		Life: m.life, State: state, Memory: memory, MemoryFile: m.memoryFile, MemoryMiB: m.config.MemoryMiB,
		Write: func(f *os.File) error { return m.writeState(ctx, f) },
	})
	if err != nil {
		return err
	}
	m.memoryFile = ""
	return nil
}

func (m *machine) writeState(ctx context.Context, f *os.File) error {
	m.life.Spent = true
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
