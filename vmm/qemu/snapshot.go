package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

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
	if err := m.snapshot(ctx, state, memory); err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, state, memory string) (err error) {
	f, err := os.OpenFile(state, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(state))
		}
	}()
	m.spent = true
	_, err = m.qmp.do(ctx,
		command{Execute: "getfd", Arguments: map[string]any{"fdname": "state"}, file: f},
		command{Execute: "migrate", Arguments: map[string]any{"uri": "fd:state"}})
	if err != nil {
		return m.explain(err)
	}
	if err := m.migrated(ctx); err != nil {
		return fmt.Errorf("writing device state: %w", err)
	}
	// Not copied: it is a shared mapping of this file. Nothing is replaced.
	if err := unix.Renameat2(unix.AT_FDCWD, m.memoryFile, unix.AT_FDCWD, memory, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("renaming %s to %s: %w", m.memoryFile, memory, err)
	}
	m.memoryFile = ""
	return nil
}
