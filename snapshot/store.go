package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
)

const (
	claimPrefix = ".lock-"
	// removedName is in the directory of a snapshot that was removed while it was
	// in use, or that is arriving: its last user deletes it, or else whoever opens the
	// store next.
	removedName = "removed"
)

// ErrNotFound is wrapped when no snapshot has the id asked for.
var ErrNotFound = errors.New("no such snapshot")

// Store is a directory of published snapshots. Its methods may be called from
// many goroutines, and any number of processes may have it open: which snapshots
// there are is looked up in the directory each time. Whoever fills, uses or deletes
// one of its directories does it by the rules of package filelock.
type Store struct {
	dir string

	mu     sync.Mutex // guards what follows and the entries' state
	known  map[string]*entry
	listed listing
}

// listing is what was read of the store's directory: every cold start asks, and to
// read it takes 0.8 ms where there are a thousand snapshots.
type listing struct {
	changed time.Time // when the directory had changed before
	ids     []string
}

// tick is more than the time for which a file system may give changes of a directory
// the same time.
const tick = 20 * time.Millisecond

// entry is what this process knows of one snapshot. Its manifest does not change.
type entry struct {
	id       string
	dir      string
	manifest Manifest // zero when it cannot be read: problem says why

	problem  error  // why it is not usable, found by a check
	stamps   stamps // of the parts when their digests were last right
	failures int    // restores that failed since one last went well
}

// Snapshot is a published, verified snapshot in use: it stays on disk until
// Release, or the process ends, whatever Remove does in whatever process.
type Snapshot struct {
	Manifest Manifest
	Dir      string

	store *Store
	hold  *filelock.Lock
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
	s.once.Do(func() { s.store.release(s.Dir, s.hold) })
}

// Open opens the store in dir, making it if it is not there. Of what it finds
// it deletes only what dead processes left half made or half removed.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, known: map[string]*entry{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the snapshot store: %w", err)
	}
	if err := s.clean(); err != nil {
		return nil, fmt.Errorf("opening the snapshot store: %w", err)
	}
	return s, nil
}

func (s *Store) clean() error {
	if err := errors.Join(atomicfile.Clean(s.dir), filelock.Sweep(s.dir, claimPrefix)); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if dir := filepath.Join(s.dir, e.Name()); ValidID(e.Name()) && wasRemoved(dir) {
			err = errors.Join(err, s.deleteUnused(dir))
		}
	}
	return err
}

func load(id, dir string) *entry {
	e := &entry{id: id, dir: dir}
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
	// What crashes cut off; what cannot be removed does no harm.
	_ = errors.Join(atomicfile.Clean(dir), atomicfile.Clean(filepath.Join(dir, traceName)))
	return e
}

// list returns what is known of the snapshots that there are, in no order, but
// only of those whose ids begin with prefix.
func (s *Store) list(prefix string) ([]*entry, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, fmt.Errorf("looking for snapshots: %w", err)
	}
	there := map[string]bool{}
	var list []*entry
	for _, id := range ids {
		if strings.HasPrefix(id, prefix) && !wasRemoved(filepath.Join(s.dir, id)) {
			if e := s.entry(id); e.manifest.Format != 0 || isDir(e.dir) { // else deleted just now
				there[e.id] = true
				list = append(list, e)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.known {
		if strings.HasPrefix(id, prefix) && !there[id] {
			delete(s.known, id)
		}
	}
	return list, nil
}

// ids returns the names of the snapshots' directories, the removed ones among them.
func (s *Store) ids() ([]string, error) {
	st, err := os.Stat(s.dir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	last := s.listed
	s.mu.Unlock()
	if last.ids != nil && last.changed.Equal(st.ModTime()) {
		return last.ids, nil
	}
	now := time.Now()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, d := range entries {
		if d.IsDir() && ValidID(d.Name()) {
			ids = append(ids, d.Name())
		}
	}
	if now.Sub(st.ModTime()) > tick { // a change after this shows
		s.mu.Lock()
		s.listed = listing{st.ModTime(), ids}
		s.mu.Unlock()
	}
	return ids, nil
}

// entry returns what is known of a snapshot. Its manifest is read only once.
func (s *Store) entry(id string) *entry {
	s.mu.Lock()
	e := s.known[id]
	s.mu.Unlock()
	if e != nil {
		return e
	}
	e = load(id, filepath.Join(s.dir, id))
	if e.manifest.Format == 0 && !errors.Is(e.problem, ErrManifest) {
		return e // it may be readable the next time
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.known[id]; other != nil {
		return other
	}
	s.known[id] = e
	return e
}

// Newest returns the function's newest snapshot that matches and is intact, in
// use by the caller, who must Release it. Reasons say why each newer one was
// passed over; with no snapshot usable it returns nil. A check of every digest
// is made only when the files are not as they were at the last one.
func (s *Store) Newest(ctx context.Context, w Want) (*Snapshot, []error) {
	list, err := s.of(w.Function)
	if err != nil {
		return nil, []error{err}
	}
	var reasons []error
	for _, e := range list {
		snap, err := s.use(ctx, e, &w)
		if err == nil {
			return snap, reasons
		}
		if !errors.Is(err, ErrNotFound) { // removed just now
			reasons = append(reasons, err)
		}
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
	err := e.problem
	s.mu.Unlock()
	if err == nil && w != nil {
		err = e.manifest.Match(*w)
	}
	if err != nil {
		return nil, err
	}
	hold, err := s.hold(e)
	if err != nil {
		return nil, err
	}
	if err := s.check(ctx, e, false); err != nil {
		s.release(e.dir, hold)
		return nil, err
	}
	return &Snapshot{Manifest: e.manifest, Dir: e.dir, store: s, hold: hold}, nil
}

// hold keeps a snapshot from being deleted, unless it was removed.
func (s *Store) hold(e *entry) (*filelock.Lock, error) {
	hold, err := filelock.Hold(e.dir)
	if err == nil && wasRemoved(e.dir) {
		s.release(e.dir, hold)
		err = fs.ErrNotExist
	}
	// Only what was removed is ever owned.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("snapshot %s: %w", e.id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("using snapshot %s: %w", e.id, err)
	}
	return hold, nil
}

// release lets go of a snapshot, and deletes it if it was removed meanwhile. It is
// looked up after letting go: who removes it marks it before seeing whether it is
// in use.
func (s *Store) release(dir string, hold *filelock.Lock) {
	_ = hold.Release()
	if wasRemoved(dir) {
		// Nobody is left to tell; what cannot be deleted now, the next Open deletes.
		_ = s.deleteUnused(dir)
	}
}

func (s *Store) get(id string) (*entry, error) {
	if dir := filepath.Join(s.dir, id); ValidID(id) && isDir(dir) && !wasRemoved(dir) {
		return s.entry(id), nil
	}
	return nil, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// of returns the entries of a function, newest first; of all for "". Ids begin with
// the name of the function, so that no more manifests are read than need be.
func (s *Store) of(function string) ([]*entry, error) {
	prefix := ""
	if function != "" {
		prefix = function + "-"
	}
	list, err := s.list(prefix)
	if function != "" {
		list = slices.DeleteFunc(list, func(e *entry) bool { return e.manifest.Function != function })
	}
	slices.SortFunc(list, newestFirst)
	return list, err
}

func newestFirst(a, b *entry) int {
	if c := b.manifest.Created.Compare(a.manifest.Created); c != 0 {
		return c
	}
	return cmp.Compare(b.id, a.id)
}

// Remove takes a snapshot out of the store, for good when it returns, also over
// a crash; its files go when the last instance that runs from it has ended, in
// whatever process.
func (s *Store) Remove(id string) error {
	if _, err := s.get(id); err != nil {
		return fmt.Errorf("removing snapshot %q: %w", id, ErrNotFound)
	}
	// Open files and mappings would live on, but a start in progress still needs
	// the paths: the files wait for the last user, and the disk remembers.
	dir := filepath.Join(s.dir, id)
	if err := markRemoved(dir); err != nil {
		return fmt.Errorf("removing snapshot %s: %w", id, err)
	}
	return s.deleteUnused(dir)
}

// RemoveUnused is Remove for a snapshot that nobody uses, in whatever process; false says
// that somebody does, or that it is gone.
func (s *Store) RemoveUnused(id string) (bool, error) {
	if _, err := s.get(id); err != nil {
		return false, nil
	}
	dir := filepath.Join(s.dir, id)
	own, err := filelock.Own(dir)
	if errors.Is(err, filelock.ErrHeld) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		// Whoever looks for it now does not find it.
		err = errors.Join(markRemoved(dir), atomicfile.Remove(dir))
		_ = own.Release()
	}
	if err != nil {
		return false, fmt.Errorf("removing snapshot %s: %w", id, err)
	}
	return true, nil
}

// markRemoved makes known to whoever looks that a snapshot is not to be used. It
// takes no block of the disk, which may be full. A directory that is gone, by
// somebody else's hand, needs no mark.
func markRemoved(dir string) error {
	path := filepath.Join(dir, removedName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	mine := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrExist) && wasRemoved(dir):
		err = nil // by another, at the same time
	case err == nil:
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		err = atomicfile.SyncDir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if mine {
			os.Remove(path)
		}
		return err
	}
	return nil
}

func wasRemoved(dir string) bool {
	st, err := os.Lstat(filepath.Join(dir, removedName))
	return err == nil && st.Mode().IsRegular()
}

// deleteUnused deletes the directory of a snapshot that was removed, unless
// somebody uses it: they will. It is gone as a whole as soon as that is begun.
func (s *Store) deleteUnused(dir string) error {
	own, err := filelock.Own(dir)
	switch {
	case errors.Is(err, filelock.ErrHeld), errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		if wasRemoved(dir) { // else it had been arriving, and is whole since
			err = atomicfile.Remove(dir)
		}
		_ = own.Release()
	}
	if err != nil {
		return fmt.Errorf("deleting snapshot %s: %w", filepath.Base(dir), err)
	}
	return nil
}
