package snapshot

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
)

const (
	stagingPrefix = ".staging-"
	trashPrefix   = ".trash-"
	// removedName is in the directory of a snapshot that was removed while it was
	// in use: whoever opens the store next deletes it.
	removedName = "removed"
)

// ErrNotFound is wrapped when no snapshot has the id asked for.
var ErrNotFound = errors.New("no such snapshot")

// Store is a directory of published snapshots. Its methods may be called from
// many goroutines; one process at a time may have it open.
type Store struct {
	dir string

	mu    sync.Mutex // guards snaps and the entries' state
	snaps map[string]*entry
}

// entry is one snapshot directory. Its manifest does not change.
type entry struct {
	id       string
	dir      string
	manifest Manifest // zero when it cannot be read: problem says why

	checking *semaphore.Weighted // of one: held over a full check, so that it is done once

	refs     int
	removed  bool   // delete when the last user has let go
	problem  error  // why it is not usable, found by a check
	stamps   stamps // of the parts when their digests were last right
	failures int    // restores that failed since one last went well
}

// Snapshot is a published, verified snapshot in use: it stays on disk until
// Release, whatever Remove does.
type Snapshot struct {
	Manifest Manifest
	Dir      string

	store *Store
	entry *entry
	once  sync.Once
}

// StatePath and MemoryPath are the paths of its parts. TraceDir is the
// directory for whatever belongs to the snapshot's memory and dies with it.
func (s *Snapshot) StatePath() string  { return filepath.Join(s.Dir, PartState) }
func (s *Snapshot) MemoryPath() string { return filepath.Join(s.Dir, PartMemory) }
func (s *Snapshot) TraceDir() string   { return filepath.Join(s.Dir, traceName) }

// MemorySize is the length of the memory file in bytes.
func (s *Snapshot) MemorySize() int64 { return s.Manifest.Parts[PartMemory].Size }

// Release lets go of the snapshot. It is idempotent.
func (s *Snapshot) Release() {
	s.once.Do(func() { s.store.release(s.entry) })
}

// Open opens the store in dir, making it if it is not there. Of what it finds
// it deletes only what a crash left half-made or half-removed.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, snaps: map[string]*entry{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the snapshot store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot store: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), stagingPrefix), strings.HasPrefix(e.Name(), trashPrefix):
			if err := os.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("opening the snapshot store: removing what a crash left: %w", err)
			}
		case !e.IsDir() || !ValidID(e.Name()):
		case wasRemoved(path):
			if err := s.delete(path); err != nil {
				return nil, fmt.Errorf("opening the snapshot store: %w", err)
			}
		default:
			s.snaps[e.Name()] = load(e.Name(), path)
		}
	}
	return s, nil
}

func newEntry(id, dir string) *entry {
	return &entry{id: id, dir: dir, checking: semaphore.NewWeighted(1)}
}

func load(id, dir string) *entry {
	e := newEntry(id, dir)
	m, err := readManifest(filepath.Join(dir, manifestName))
	switch {
	case err != nil:
		e.problem = fmt.Errorf("snapshot %s: reading its manifest: %w", id, err)
	case m.ID != id:
		e.problem = fmt.Errorf("snapshot %s: %w: it says that it is %s", id, ErrManifest, m.ID)
	default:
		e.manifest = m
	}
	e.stamps = readStamps(dir)
	// A recording that a crash cut off; what cannot be removed does no harm.
	_ = atomicfile.Clean(filepath.Join(dir, traceName))
	return e
}

// publish is the last step of a staged snapshot. Nobody knows of it before it is
// on disk, and nobody waits for the disk meanwhile.
func (s *Store) publish(staged string, m Manifest, seen stamps) (api.Snapshot, error) {
	e := newEntry(m.ID, filepath.Join(s.dir, m.ID))
	e.manifest, e.stamps = m, seen
	if err := os.Rename(staged, e.dir); err != nil {
		return api.Snapshot{}, err
	}
	if err := syncDir(s.dir); err != nil {
		os.RemoveAll(e.dir)
		return api.Snapshot{}, err
	}
	out := e.describe(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snaps[m.ID] = e
	return out, nil
}

// Newest returns the function's newest snapshot that matches and is intact, in
// use by the caller, who must Release it. Reasons say why each newer one was
// passed over; with no snapshot usable it returns nil. A check of every digest
// is made only when the files are not as they were at the last one.
func (s *Store) Newest(ctx context.Context, w Want) (*Snapshot, []error) {
	var reasons []error
	for _, e := range s.of(w.Function) {
		snap, err := s.use(ctx, e, &w)
		if err == nil {
			return snap, reasons
		}
		reasons = append(reasons, err)
	}
	return nil, reasons
}

// Acquire returns one snapshot by id, checked like Newest does.
func (s *Store) Acquire(ctx context.Context, id string, w Want) (*Snapshot, error) {
	e, err := s.get(id)
	if err != nil {
		return nil, err
	}
	return s.use(ctx, e, &w)
}

func (s *Store) use(ctx context.Context, e *entry, w *Want) (*Snapshot, error) {
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return nil, fmt.Errorf("snapshot %s: %w", e.id, ErrNotFound)
	}
	e.refs++
	problem := e.problem
	s.mu.Unlock()
	snap := &Snapshot{Manifest: e.manifest, Dir: e.dir, store: s, entry: e}
	err := problem
	if err == nil {
		err = e.manifest.Match(*w)
	}
	if err == nil {
		err = s.check(ctx, e, false)
	}
	if err != nil {
		snap.Release()
		return nil, err
	}
	return snap, nil
}

func (s *Store) get(id string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.snaps[id]
	if e == nil {
		return nil, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
	}
	return e, nil
}

// of returns the entries of a function, newest first.
func (s *Store) of(function string) []*entry {
	s.mu.Lock()
	var list []*entry
	for _, e := range s.snaps {
		if e.manifest.Function == function {
			list = append(list, e)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, newestFirst)
	return list
}

func newestFirst(a, b *entry) int {
	if c := b.manifest.Created.Compare(a.manifest.Created); c != 0 {
		return c
	}
	return cmp.Compare(b.id, a.id)
}

// Remove takes a snapshot out of the store, for good when it returns, also over
// a crash; its files go when the last instance that runs from it has ended.
func (s *Store) Remove(id string) error {
	e, err := s.get(id)
	if err != nil {
		return fmt.Errorf("removing snapshot %q: %w", id, ErrNotFound)
	}
	// Open files and mappings would live on, but a start in progress still needs
	// the paths: the files wait for the last user, and the disk remembers.
	if err := markRemoved(e.dir); err != nil {
		return fmt.Errorf("removing snapshot %s: %w", id, err)
	}
	s.mu.Lock()
	if e.removed {
		s.mu.Unlock()
		return nil // by another, at the same time
	}
	delete(s.snaps, id)
	e.removed = true
	last := e.refs == 0
	s.mu.Unlock()
	if last {
		return s.delete(e.dir)
	}
	return nil
}

// markRemoved makes known to every later Open that a snapshot is not to be used.
// It takes no block of the disk, which may be full. A directory that is gone, by
// somebody else's hand, needs no mark.
func markRemoved(dir string) error {
	path := filepath.Join(dir, removedName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		os.Remove(path)
		return err
	}
	return nil
}

func wasRemoved(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, removedName))
	return err == nil
}

func (s *Store) release(e *entry) {
	s.mu.Lock()
	e.refs--
	last := e.removed && e.refs == 0
	s.mu.Unlock()
	if last {
		// Nobody is left to tell; what cannot be deleted now, the next Open deletes.
		_ = s.delete(e.dir)
	}
}

// delete deletes the directory of a snapshot, whole as soon as it is begun.
func (s *Store) delete(dir string) error {
	trash := filepath.Join(s.dir, trashPrefix+filepath.Base(dir)+"-"+rand.Text()[:8])
	err := os.Rename(dir, trash)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing snapshot %s: %w", filepath.Base(dir), err)
	}
	if err := errors.Join(syncDir(s.dir), os.RemoveAll(trash)); err != nil {
		return fmt.Errorf("removing snapshot %s: %w", filepath.Base(dir), err)
	}
	return nil
}
