// Package mark is the note in a snapshot's directory that the object store has it. It stands apart from
// package transfer for programs that only ask what is to be pushed.
package mark

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/memory/workingset"
)

// Mark is in a snapshot's directory once the object store has it.
type Mark struct {
	Manifest   string `json:"manifest"`    // digest of the one in the store
	WorkingSet bool   `json:"working_set"` // it has one
}

const name = "pushed.json"

// Write writes the mark into a snapshot's directory.
func (m Mark) Write(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteUnsynced(filepath.Join(dir, name), b, 0o600)
}

// Due says whether the snapshot in a directory is to be pushed: it was not yet, or has a working set since.
func Due(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, name))
	var m Mark
	if err != nil || json.Unmarshal(b, &m) != nil {
		return !errors.Is(err, fs.ErrPermission)
	}
	if m.WorkingSet {
		return false
	}
	_, err = os.Lstat(filepath.Join(dir, "trace", workingset.SetFile))
	return err == nil
}
