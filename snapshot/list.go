package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/filelock"
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
	hold, err := s.hold(e)
	if err != nil {
		return err
	}
	defer s.release(e.dir, hold)
	if err := s.check(ctx, e, true); err != nil {
		return err
	}
	s.Restored(id, nil)
	return nil
}

// check verifies e's parts, unless their stamps tell that nothing has changed
// since the last time, in whatever process, and full is not asked for. The caller
// holds the snapshot.
func (s *Store) check(ctx context.Context, e *entry, full bool) error {
	seen, err := statParts(e.dir)
	if err != nil {
		return s.found(e, nil, fmt.Errorf("snapshot %s: %w", e.id, err))
	}
	if !full && s.trusted(e, seen) {
		return nil
	}
	checking, err := filelock.Claim(ctx, s.checking(e.id))
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("snapshot %s: waiting for a check of it: %w", e.id, err)
	}
	// A claim that cannot be made, on a full disk, would have saved work, no more.
	defer checking.Release()
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

// checking is the claim of who reads a whole snapshot: others wait for the result.
func (s *Store) checking(id string) string { return filepath.Join(s.dir, claimPrefix+id) }

// trusted says whether the parts are as they were when somebody, perhaps in another
// process, found their digests right.
func (s *Store) trusted(e *entry, seen stamps) bool {
	s.mu.Lock()
	problem, noted := e.problem, e.stamps
	s.mu.Unlock()
	if problem != nil || noted.equal(seen) {
		return problem == nil
	}
	if noted = readStamps(e.dir); !noted.equal(seen) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.stamps = noted
	return e.problem == nil
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
// is not used again, by this process, until Verify is asked to look at it.
func (s *Store) Restored(id string, failed error) {
	e, err := s.get(id)
	if err != nil {
		return // removed
	}
	if failed != nil { // before the next use reads it back
		os.Remove(filepath.Join(e.dir, stampName))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if failed == nil {
		e.failures = 0
		return
	}
	e.failures++
	e.stamps = nil
	if e.failures >= maxFailures {
		e.problem = fmt.Errorf("snapshot %s: %d restores in a row failed, the last with: %w", id, e.failures, failed)
	}
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
func (s *Store) List(function string, want func(function string) (Want, bool)) ([]api.Snapshot, error) {
	list, err := s.of(function)
	if err != nil {
		return nil, err
	}
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
	return out, nil
}

// IDs lists the snapshots of a function, newest first.
func (s *Store) IDs(function string) ([]string, error) {
	list, err := s.of(function)
	var ids []string
	for _, e := range list {
		ids = append(ids, e.id)
	}
	return ids, err
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
