package transfer

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer/mark"
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
	var m mark.Mark
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
	if err := m.Write(snap.Dir); err != nil {
		log.Warn("noting that a snapshot was pushed", "snapshot", out.ID, "error", err)
	}
	log.Info("snapshot pushed", "function", out.Function, "snapshot", out.ID, "content", done.Content, "new", done.New, "written", done.Written, "took", time.Since(began).String())
	return done, nil
}

// Came notes in the directory of a snapshot that it came from the object store.
func (r *Found) Came(dir string) error {
	_, ws := r.Stored.File(traceDir + workingset.SetFile)
	return mark.Mark{Manifest: r.Entry.Sum, WorkingSet: ws}.Write(dir)
}
