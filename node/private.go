package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// makeOwn makes a directory that is the daemon's alone, or takes from others
// what an earlier daemon has given them. VMMs get by: what runs as a user of its
// own is handed files that were opened or mounted before it became that user.
func makeOwn(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("making a directory that is the daemon's alone: %w", err)
	}
	return nil
}

// ownDatabase makes the database's file before SQLite would make one that all
// may read; its write-ahead log and shared memory get the mode of the file.
func ownDatabase(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	for _, p := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Chmod(p, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
