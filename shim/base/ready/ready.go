// Package ready is what shims and the program skep-store have to say to each other of ready snapshots. It is
// small: neither is to have in it what only the other needs.
package ready

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/transfer/mark"
)

// Prefix begins the ids of ready snapshots.
const Prefix = "ready-"

// Program is the one that talks to the object store. It is beside the shim.
const Program = "skep-store"

// Answer is what the program says of a snapshot that it was to fetch.
type Answer struct {
	Snapshot string `json:"snapshot,omitempty"` // its id, once it is here
	Why      string `json:"why,omitempty"`      // it is not
	// Failed says that the store, or its key, was not to be had: nor will it be for who asks right after.
	Failed bool `json:"failed,omitempty"`
}

// Due lists the ready snapshots below a data directory that the object store has not.
func Due(dataDir string) (ids []string, err error) {
	dir := filepath.Join(dataDir, "snapshots")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), Prefix) && mark.Due(filepath.Join(dir, e.Name())) {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}
