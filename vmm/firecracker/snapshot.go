package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

// Snapshot writes device state and guest memory; see vmm.Machine.
func (m *machine) Snapshot(ctx context.Context, state, memory string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
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

// writeState has memory written to the machine's own file, and state to f.
func (m *machine) writeState(ctx context.Context, f *os.File) error {
	kind, err := snapshotType()
	if err != nil {
		return err
	}
	m.life.Spent = true
	err = m.api.do(ctx, "PUT", "/snapshot/create", snapshotCreate{Type: kind, State: inside(outName), Memory: memoryName}, transfer(m.config.MemoryMiB))
	if err != nil {
		return m.explain(err)
	}
	// The state is written within the machine's own directory, and small.
	if err := process.CopyForeign(f, m.jail.dir, outName, m.jail.user(), maxState); err != nil {
		return fmt.Errorf("reading device state: %w", err)
	}
	return nil
}

// maxState is the size of the largest device state, in bytes; Firecracker itself
// reads at most 10 MiB.
const maxState = 10 << 20

// snapshotType is Diff where that is right. A Full snapshot writes every page.
// A Diff writes those that are in memory, which mincore tells, into a file that
// is all holes. But pages that were swapped out are not in memory: where the
// host swaps, all are written, and the snapshot's store makes the holes.
func snapshotType() (string, error) {
	f, err := os.Open("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) {
		return "Diff", nil // a kernel without swapping
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 0; lines.Scan(); n++ {
		if n > 0 { // after the headings, a line for each device
			return "Full", nil
		}
	}
	return "Diff", lines.Err()
}
