package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/vmm"
)

// Snapshot writes device state and guest memory; see vmm.Machine.
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
	err := vmm.PublishSnapshot(state, m.memoryFile, memory, func(f *os.File) error { return m.writeState(ctx, f) })
	if err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
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
	m.spent = true
	err = m.api.do(ctx, "PUT", "/snapshot/create", snapshotCreate{Type: kind, State: inside(outName), Memory: memoryName}, transfer(m.config.MemoryMiB))
	if err != nil {
		return m.explain(err)
	}
	// The state is written within the machine's own directory, and small.
	if err := copyFrom(f, m.path(outName)); err != nil {
		return fmt.Errorf("writing device state: %w", err)
	}
	return nil
}

func copyFrom(dst *os.File, path string) error {
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = io.Copy(dst, src)
	return err
}

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
