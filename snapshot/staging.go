package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
)

// Staging is a snapshot in the making: a directory that a crash leaves to the
// next Open to remove, in whatever process.
type Staging struct {
	ID       string // that the snapshot will have
	Function string
	Dir      string

	store  *Store
	staged *atomicfile.Staged
	once   sync.Once // Publish or Abort, whichever comes first
}

// Stage makes a place for a new snapshot of the function. The caller puts the
// parts at State and Memory, then calls Publish, or else Abort.
func (s *Store) Stage(function string) (*Staging, error) {
	var r [4]byte
	if _, err := rand.Read(r[:]); err != nil {
		return nil, fmt.Errorf("staging a snapshot of %s: %w", function, err)
	}
	id := function + "-" + time.Now().UTC().Format("20060102-150405") + "-" + hex.EncodeToString(r[:])
	if !ValidID(id) {
		return nil, fmt.Errorf("staging a snapshot: function name %q cannot be part of a snapshot's id", function)
	}
	staged, err := atomicfile.Stage(s.dir, id)
	if err != nil {
		return nil, fmt.Errorf("staging a snapshot of %s: %w", function, err)
	}
	return &Staging{ID: id, Function: function, Dir: staged.Dir, store: s, staged: staged}, nil
}

// State and Memory are the paths of the two parts.
func (g *Staging) State() string  { return filepath.Join(g.Dir, PartState) }
func (g *Staging) Memory() string { return filepath.Join(g.Dir, PartMemory) }

// Abort removes what was staged. After Publish it does nothing.
func (g *Staging) Abort() {
	g.once.Do(func() { _ = g.staged.Close() })
}

// Publish makes the staged parts a snapshot: zero pages of memory become holes,
// sizes and digests are computed, everything is on disk before the one rename
// that makes it seen. The caller fills in what m says of the machine; format,
// id, function, time and parts are set here. When it fails nothing is left.
func (g *Staging) Publish(ctx context.Context, m Manifest) (api.Snapshot, error) {
	var out api.Snapshot
	err := fmt.Errorf("publishing snapshot %s: it is published or aborted already", g.ID)
	g.once.Do(func() {
		out, err = g.publish(ctx, m)
		_ = g.staged.Close()
		if err != nil {
			err = fmt.Errorf("publishing snapshot %s: %w", g.ID, explainFull(err))
		}
	})
	return out, err
}

func (g *Staging) publish(ctx context.Context, m Manifest) (api.Snapshot, error) {
	m.Format, m.ID, m.Function = FormatVersion, g.ID, g.Function
	m.Created = time.Now().UTC().Round(time.Millisecond)
	m.Parts = map[string]Part{}
	for _, name := range []string{PartState, PartMemory} {
		p, err := seal(ctx, g.Dir, name)
		if err != nil {
			return api.Snapshot{}, err
		}
		m.Parts[name] = p
	}
	if err := m.validate(); err != nil {
		return api.Snapshot{}, err
	}
	if err := os.Mkdir(filepath.Join(g.Dir, traceName), 0o700); err != nil {
		return api.Snapshot{}, err
	}
	e, err := g.put(ctx, m)
	if err != nil {
		return api.Snapshot{}, err
	}
	return e.describe(nil), nil
}

// put publishes what is complete but for its manifest.
func (g *Staging) put(ctx context.Context, m Manifest) (*entry, error) {
	b, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(g.Dir, manifestName), b, 0o600); err != nil {
		return nil, err
	}
	seen, err := statParts(g.Dir)
	if err != nil {
		return nil, err
	}
	if err := writeStamps(g.Dir, seen); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e := &entry{id: m.ID, dir: filepath.Join(g.store.dir, m.ID), manifest: m, stamps: seen}
	if err := g.staged.Publish(e.dir); err != nil {
		if isDir(e.dir) && !errors.Is(err, fs.ErrExist) {
			err = errors.Join(err, g.store.Remove(m.ID)) // it may be gone after a crash
		}
		return nil, err
	}
	return e, nil
}

// seal makes a part the daemon's own and read-only, makes its zeros holes,
// computes its digest and syncs it: from here on it is only read. Some VMMs open
// it by themselves, as users without rights, where it is mounted for them; from
// others the store's directory, which is the daemon's alone, keeps it.
func seal(ctx context.Context, dir, name string) (Part, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Part{}, err
	}
	defer f.Close()
	if err := f.Chown(os.Getuid(), os.Getgid()); err != nil {
		return Part{}, err
	}
	if err := f.Chmod(0o444); err != nil {
		return Part{}, err
	}
	digest, size, err := digestFile(ctx, f, name == PartMemory)
	if err != nil {
		return Part{}, err
	}
	if err := f.Sync(); err != nil {
		return Part{}, fmt.Errorf("syncing %s: %w", path, err)
	}
	return Part{Size: size, Digest: digest}, nil
}

// explainFull says what to do about a full disk.
func explainFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: the disk of the snapshot store is full: make room there (`skep snapshot rm`) and try again", err)
	}
	return err
}
