package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
)

// Arrival is a snapshot that was made elsewhere and whose memory is still on its way. It lies where
// it will when it is whole, since what uses it meanwhile goes on using it; until then it is marked
// like one that was removed while it is in use. So nobody else finds it, and if this process dies
// whoever opens the store next deletes it.
type Arrival struct {
	g        *Staging
	manifest Manifest
	dir      string

	once sync.Once // Complete or Abort, whichever comes first
}

// Arrive makes of a received snapshot, which is complete but for the contents of its memory, one that
// its caller can use until that is here too, and then Complete, or else Abort.
func (g *Staging) Arrive(ctx context.Context, m Manifest) (*Arrival, error) {
	a := &Arrival{g: g, manifest: m, dir: filepath.Join(g.store.dir, m.ID)}
	err := fmt.Errorf("receiving snapshot %s: it is published or aborted already", g.ID)
	g.once.Do(func() {
		if err = a.place(ctx); err != nil {
			_ = g.staged.Close()
			err = fmt.Errorf("receiving snapshot %s: %w", g.ID, explainFull(err))
		}
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Arrival) place(ctx context.Context) error {
	if err := a.manifest.validate(); err != nil {
		return err
	}
	if err := sealAs(ctx, a.g.Dir, PartState, a.manifest); err != nil {
		return err
	}
	if st, err := os.Lstat(a.g.Memory()); err != nil {
		return err
	} else if want := a.manifest.Parts[PartMemory].Size; !st.Mode().IsRegular() || st.Size() != want {
		return fmt.Errorf("%s has %d bytes, its manifest says %d", PartMemory, st.Size(), want)
	}
	b, err := a.manifest.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(a.g.Dir, manifestName), b, 0o600); err != nil {
		return err
	}
	if err := markRemoved(a.g.Dir); err != nil {
		return err
	}
	err = a.g.staged.Place(a.dir)
	if errors.Is(err, fs.ErrExist) {
		return errors.New("it is here already, or was removed and is still in use: it can come again when that is over")
	}
	return err
}

// sealAs is seal for a part that must be what a manifest says.
func sealAs(ctx context.Context, dir, name string, m Manifest) error {
	got, err := seal(ctx, dir, name)
	if err != nil {
		return err
	}
	if want := m.Parts[name]; got != want {
		return fmt.Errorf("%s has %d bytes and digest %.12s…, its manifest says %d and %.12s…", name, got.Size, got.Digest, want.Size, want.Digest)
	}
	return nil
}

// Use returns the snapshot in use by the caller, who must Release it and does not read its memory
// file but by what fills it.
func (a *Arrival) Use() (*Snapshot, error) {
	hold, err := filelock.Hold(a.dir)
	if err != nil {
		return nil, fmt.Errorf("using snapshot %s, which is arriving: %w", a.manifest.ID, err)
	}
	return &Snapshot{Manifest: a.manifest, Dir: a.dir, store: a.g.store, hold: hold}, nil
}

// Describe says what it is, and what it occupies by now.
func (a *Arrival) Describe() api.Snapshot {
	return (&entry{id: a.manifest.ID, dir: a.dir, manifest: a.manifest}).describe(nil)
}

// Complete publishes the snapshot, if its memory is what the manifest says; else it goes, when its
// last user has released it.
func (a *Arrival) Complete(ctx context.Context) (api.Snapshot, error) {
	err := fmt.Errorf("publishing snapshot %s: it is published or aborted already", a.manifest.ID)
	a.once.Do(func() {
		if err = a.publish(ctx); err != nil {
			err = fmt.Errorf("publishing snapshot %s: %w", a.manifest.ID, explainFull(err))
		}
		a.leave()
	})
	if err != nil {
		return api.Snapshot{}, err
	}
	return a.Describe(), nil
}

func (a *Arrival) publish(ctx context.Context) error {
	if err := sealAs(ctx, a.dir, PartMemory, a.manifest); err != nil {
		return err
	}
	seen, err := statParts(a.dir)
	if err != nil {
		return err
	}
	if err := writeStamps(a.dir, seen); err != nil {
		return err
	}
	if err := atomicfile.SyncTree(a.dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(a.dir, removedName)); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(a.dir); err != nil {
		return errors.Join(err, markRemoved(a.dir)) // it may be gone after a crash
	}
	return nil
}

// leave lets go of it: what is not published is deleted by its last user.
func (a *Arrival) leave() {
	_ = a.g.staged.Close()
	if wasRemoved(a.dir) {
		_ = a.g.store.deleteUnused(a.dir)
	}
}

// Abort gives the snapshot up; its files go when its last user has released it. After Complete it
// does nothing.
func (a *Arrival) Abort() { a.once.Do(a.leave) }
