package base

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/snapshot"
)

// Clean removes what processes that have died, or a host that did, have left below
// the data directory of the settings: what they were making, their guests' memory,
// snapshots that were removed while they used them. What others are using stays.
// Open does it, too.
func Clean(cfg config.Config) error {
	if _, err := os.Stat(cfg.DataDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{cleanOwn(cfg)}
	images, err := image.Open(filepath.Join(cfg.DataDir, "images"), image.Options{})
	if err == nil {
		err = images.Close()
	}
	errs = append(errs, err)
	_, err = snapshot.Open(filepath.Join(cfg.DataDir, "snapshots"))
	return errors.Join(append(errs, err)...)
}

// cleanOwn is Clean for what is not in a store.
func cleanOwn(cfg config.Config) error {
	sweep := filelock.Sweep(filepath.Join(cfg.DataDir, "claims"), "")
	if errors.Is(sweep, fs.ErrNotExist) {
		sweep = nil
	}
	return errors.Join(atomicfile.Clean(filepath.Join(cfg.DataDir, "mem")), sweep)
}
