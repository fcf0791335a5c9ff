package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
)

// Push stores a snapshot, which the caller has in use, with its root disk, in the object store, and notes
// in its directory that it was. progress may be nil.
func Push(ctx context.Context, store *remote.Store, snap *snapshot.Snapshot, img image.Image, log *slog.Logger, progress func(done, total int64)) (remote.Pushed, error) {
	out := remote.Snapshot{Function: snap.Manifest.Function, ID: snap.Manifest.ID, Fit: snap.Manifest.Fit()}
	manifest, err := snap.Manifest.Encode()
	if err != nil {
		return remote.Pushed{}, err
	}
	if out.Meta, err = json.Marshal(travelling{manifest, img}); err != nil {
		return remote.Pushed{}, err
	}
	var m mark
	for _, name := range traceFiles {
		path := filepath.Join(snap.TraceDir(), name)
		if _, err := os.Lstat(path); err == nil {
			out.Files = append(out.Files, remote.File{Name: traceDir + name, Path: path})
			m.WorkingSet = m.WorkingSet || name == workingset.SetFile
		}
	}
	out.Files = append(out.Files,
		remote.File{Name: snapshot.PartState, Path: snap.StatePath()},
		remote.File{Name: snapshot.PartMemory, Path: snap.MemoryPath()},
		remote.File{Name: disk, Path: img.Disk})
	began := time.Now()
	done, err := store.Push(ctx, out, progress)
	if err != nil {
		return remote.Pushed{}, err
	}
	m.Manifest = done.Entry.Sum
	if err := m.write(snap.Dir); err != nil {
		log.Warn("noting that a snapshot was pushed", "snapshot", out.ID, "error", err)
	}
	log.Info("snapshot pushed", "function", out.Function, "snapshot", out.ID, "content", done.Content, "new", done.New, "written", done.Written, "took", time.Since(began).String())
	return done, nil
}

// mark is in a snapshot's directory once the object store has it.
type mark struct {
	Manifest   string `json:"manifest"`    // digest of the one in the store
	WorkingSet bool   `json:"working_set"` // it has one
}

const markName = "pushed.json"

func (m mark) write(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteUnsynced(filepath.Join(dir, markName), b, 0o600)
}

// Due says whether the snapshot in a directory is to be pushed: it was not yet, or has a working set since.
func Due(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	var m mark
	if err != nil || json.Unmarshal(b, &m) != nil {
		return !errors.Is(err, fs.ErrPermission)
	}
	if m.WorkingSet {
		return false
	}
	_, err = os.Lstat(filepath.Join(dir, traceDir, workingset.SetFile))
	return err == nil
}

// Came notes in the directory of a snapshot that it came from the object store.
func (r *Found) Came(dir string) error {
	_, ws := r.Stored.File(traceDir + workingset.SetFile)
	return mark{r.Entry.Sum, ws}.write(dir)
}
