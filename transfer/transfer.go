// Package transfer moves snapshots between the store of a host (package snapshot) and an object store
// (package remote): which of those there fits what is wanted here, and why others do not; what of a
// snapshot travels, and what is checked when it comes.
//
// It stands beside the way of a cold invocation. Package node calls it for functions, cmd/skep-store for
// containers.
package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
)

const (
	// disk is the root disk's name among a snapshot's files in the store.
	disk     = "disk"
	traceDir = "trace/"
)

// traceFiles are those of a snapshot's trace directory that travel, what a start uses
// first before the rest.
var traceFiles = []string{
	workingset.SetFile, "trial/" + workingset.SetFile, workingset.TraceFile, "trial/" + workingset.TraceFile, workingset.LearnedFile,
}

// travelling is what the store keeps of a snapshot beside its files.
type travelling struct {
	Manifest json.RawMessage `json:"manifest"`
	Image    image.Image     `json:"image"` // whose root disk it has
}

// Found is a snapshot in the object store whose manifests were read.
type Found struct {
	Entry    remote.Entry
	Stored   *remote.Manifest
	Manifest snapshot.Manifest
	Image    image.Image // whose root disk comes with it
}

// Look reads the manifests of a snapshot in the object store.
func Look(ctx context.Context, store *remote.Store, e remote.Entry) (*Found, error) {
	r := &Found{Entry: e}
	var err error
	if r.Stored, err = store.Load(ctx, e); err != nil {
		return nil, err
	}
	var t travelling
	d := json.NewDecoder(bytes.NewReader(r.Stored.Meta))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("snapshot %s in the object store: %w: %w", e.ID, remote.ErrFormat, err)
	}
	if r.Manifest, err = snapshot.Decode(t.Manifest); err != nil {
		return nil, fmt.Errorf("snapshot %s in the object store: %w", e.ID, err)
	}
	r.Image = t.Image
	if m := &r.Manifest; m.ID != e.ID || m.Function != e.Function || m.ImageDigest != t.Image.Digest || m.DiskDigest != t.Image.DiskDigest {
		return nil, fmt.Errorf("snapshot %s of %s in the object store: %w: its manifest is of %s of %s", e.ID, e.Function, remote.ErrFormat, m.ID, m.Function)
	}
	return r, nil
}

// Find returns the newest snapshot in the object store that is what is wanted; nil with reasons, if there
// is none.
func Find(ctx context.Context, store *remote.Store, want snapshot.Want) (*Found, error) {
	fit, err := store.Fit(ctx, want.Fit())
	if err != nil {
		return nil, err
	}
	all, err := store.List(ctx, want.Function)
	if err != nil {
		return nil, err
	}
	var reasons []error
	for _, e := range all {
		// Of those that do not fit the newest one's reason will do.
		if e.Fit != fit && len(reasons) > 0 {
			continue
		}
		r, err := Look(ctx, store, e)
		if err == nil {
			err = r.Manifest.Match(want)
		}
		if err == nil {
			return r, nil
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		return nil, errors.New("the object store has none")
	}
	return nil, fmt.Errorf("in the object store: %w", errors.Join(reasons...))
}
