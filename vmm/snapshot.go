package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// PublishSnapshot is what VMMs have in common when they take a snapshot: write
// fills the new file state with device state, then the machine's own memoryFile,
// complete by then, is renamed to memory. No file is replaced, and none is left
// after an error, but for memoryFile.
func PublishSnapshot(state, memoryFile, memory string, write func(state *os.File) error) (err error) {
	f, err := os.OpenFile(state, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(state))
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, memoryFile, unix.AT_FDCWD, memory, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("renaming %s to %s: %w", memoryFile, memory, err)
	}
	return nil
}
