package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
)

// Verify reads every part of a snapshot and compares its digest. What it finds
// is remembered: a snapshot that fails is not used again until a later check
// finds it right.
func (s *Store) Verify(ctx context.Context, id string) error {
	e, err := s.get(id)
	if err != nil {
		return err
	}
	if e.manifest.Format == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return e.problem
	}
	if err := s.check(ctx, e, true); err != nil {
		return err
	}
	s.Restored(id, nil)
	return nil
}

// check verifies e's parts, unless their stamps tell that nothing has changed
// since the last time and full is not asked for.
func (s *Store) check(ctx context.Context, e *entry, full bool) error {
	seen, err := statParts(e.dir)
	if err != nil {
		return s.found(e, nil, fmt.Errorf("snapshot %s: %w", e.id, err))
	}
	if !full && s.trusted(e, seen) {
		return nil
	}
	if err := e.checking.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("snapshot %s: waiting for a check of it: %w", e.id, context.Cause(ctx))
	}
	defer e.checking.Release(1)
	if !full && s.trusted(e, seen) {
		return nil // checked by another while we waited
	}
	for name, want := range e.manifest.Parts {
		if err := checkPart(ctx, filepath.Join(e.dir, name), want); err != nil {
			err = fmt.Errorf("snapshot %s: %w", e.id, err)
			if ctx.Err() != nil {
				return err // says nothing of the snapshot
			}
			return s.found(e, nil, err)
		}
	}
	after, err := statParts(e.dir)
	if err == nil && !after.equal(seen) {
		err = fmt.Errorf("its files change while they are read")
	}
	if err != nil {
		return s.found(e, nil, fmt.Errorf("snapshot %s: %w", e.id, err))
	}
	return s.found(e, seen, nil)
}

func (s *Store) trusted(e *entry, seen stamps) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.problem == nil && e.stamps.equal(seen)
}

// found notes the result of a check and returns its error.
func (s *Store) found(e *entry, seen stamps, err error) error {
	s.mu.Lock()
	e.problem, e.stamps = err, seen
	s.mu.Unlock()
	if err != nil {
		os.Remove(filepath.Join(e.dir, stampName))
		return err
	}
	_ = writeStamps(e.dir, seen) // lost, it costs one more check
	return nil
}

func checkPart(ctx context.Context, path string, want Part) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	digest, size, err := digestFile(ctx, f, false)
	switch {
	case err != nil:
		return err
	case size != want.Size:
		return fmt.Errorf("%s has %d bytes, its manifest says %d", filepath.Base(path), size, want.Size)
	case digest != want.Digest:
		return fmt.Errorf("%s is corrupted: its digest is %.12s…, its manifest says %.12s…", filepath.Base(path), digest, want.Digest)
	}
	return nil
}

// Restored tells how a restore of a snapshot went. After a failure the next use
// checks every digest first; one that is intact but fails three times in a row
// is not used again until Verify is asked to look at it.
func (s *Store) Restored(id string, failed error) {
	s.mu.Lock()
	e := s.snaps[id]
	if e == nil {
		s.mu.Unlock()
		return
	}
	if failed == nil {
		e.failures = 0
		s.mu.Unlock()
		return
	}
	e.failures++
	e.stamps = nil
	if e.failures >= maxFailures {
		e.problem = fmt.Errorf("snapshot %s: %d restores in a row failed, the last with: %w", id, e.failures, failed)
	}
	s.mu.Unlock()
	os.Remove(filepath.Join(e.dir, stampName))
}

const maxFailures = 3

// Manifest returns a snapshot's manifest.
func (s *Store) Manifest(id string) (Manifest, error) {
	e, err := s.get(id)
	if err != nil {
		return Manifest{}, err
	}
	if e.manifest.Format == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return Manifest{}, e.problem
	}
	return e.manifest, nil
}

// Dir returns the directory of a snapshot.
func (s *Store) Dir(id string) (string, error) {
	e, err := s.get(id)
	if err != nil {
		return "", err
	}
	return e.dir, nil
}

// List describes the snapshots of a function, newest first; of all functions,
// with those whose manifest cannot be read, when function is "". Those that
// differ from what want returns for their function are not usable, and say why;
// want may be nil.
func (s *Store) List(function string, want func(function string) (Want, bool)) []api.Snapshot {
	s.mu.Lock()
	var list []*entry
	for _, e := range s.snaps {
		if function == "" || e.manifest.Function == function {
			list = append(list, e)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, newestFirst)
	out := make([]api.Snapshot, 0, len(list))
	for _, e := range list {
		s.mu.Lock()
		problem := e.problem
		s.mu.Unlock()
		if problem == nil && want != nil {
			if w, ok := want(e.manifest.Function); ok {
				problem = e.manifest.Match(w)
			} else {
				problem = fmt.Errorf("function %s is not deployed", e.manifest.Function)
			}
		}
		out = append(out, e.describe(problem))
	}
	return out
}

// IDs lists the snapshots of a function, newest first, without touching the disk.
func (s *Store) IDs(function string) []string {
	var ids []string
	for _, e := range s.of(function) {
		ids = append(ids, e.id)
	}
	return ids
}

func (e *entry) describe(problem error) api.Snapshot {
	m := &e.manifest
	out := api.Snapshot{
		ID: e.id, Function: m.Function, Created: m.Created, Reason: m.Reason,
		VMM:         strings.TrimSpace(m.VMM.Name + " " + m.VMM.Version + " " + m.VMM.Accel),
		ImageDigest: m.ImageDigest, MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs,
		DiskBytes: diskBytes(e.dir), Usable: problem == nil,
	}
	if problem != nil {
		out.Problem = problem.Error()
	}
	return out
}
