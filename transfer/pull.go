package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
)

// importer is an image store that takes root disks which were made elsewhere.
type importer interface {
	Import(ctx context.Context, img image.Image, fill func(disk *os.File) error) (image.Image, error)
}

var _ importer = (*image.Store)(nil)

// Images are the root disks of a host.
type Images interface {
	Get(digest string) (image.Image, error)
}

// DiskHere says whether the snapshot's root disk is here: its image may not be here with another.
func (r *Found) DiskHere(images Images) (bool, error) {
	img, err := images.Get(r.Image.Digest)
	if errors.Is(err, image.ErrNotFound) {
		return false, nil
	}
	if err == nil && img.DiskDigest != r.Image.DiskDigest {
		err = fmt.Errorf("its root disk has digest %s, the one of image %s here %s", r.Image.DiskDigest, img.Digest, img.DiskDigest)
	}
	return err == nil, err
}

// Disk brings the snapshot's root disk here, if it is not here yet and images can take it.
func (r *Found) Disk(ctx context.Context, store *remote.Store, images Images) error {
	if here, err := r.DiskHere(images); here || err != nil {
		return err
	}
	to, ok := images.(importer)
	if !ok {
		return fmt.Errorf("%w: %s", image.ErrNotFound, r.Image.Digest)
	}
	_, err := to.Import(ctx, r.Image, func(f *os.File) error {
		if err := r.checkDisk(); err != nil {
			return err
		}
		return store.Fetch(ctx, r.Stored, []remote.Target{{Name: disk, To: f}}, nil)
	})
	return err
}

func (r *Found) checkDisk() error {
	if c, ok := r.Stored.File(disk); !ok || c.Size != r.Image.DiskBytes {
		return fmt.Errorf("%w: it has no root disk of %d bytes", remote.ErrFormat, r.Image.DiskBytes)
	}
	return nil
}

// ArriveDisk begins to have the snapshot's root disk by and by; see remote.Store.Arrive.
func (r *Found) ArriveDisk(store *remote.Store, to io.WriterAt, wait time.Duration) (*remote.Arriving, error) {
	if err := r.checkDisk(); err != nil {
		return nil, err
	}
	return store.Arrive(r.Stored, disk, to, wait)
}

// Pull brings all of a snapshot here but for its root disk. progress may be nil.
func (r *Found) Pull(ctx context.Context, store *remote.Store, snaps *snapshot.Store, progress func(done, total int64)) (api.Snapshot, error) {
	stage, err := snaps.Receive(r.Manifest)
	if err != nil {
		return api.Snapshot{}, err
	}
	defer stage.Abort()
	files, err := r.Stage(stage)
	if err != nil {
		return api.Snapshot{}, err
	}
	err = store.Fetch(ctx, r.Stored, Targets(files, ""), progress)
	for _, f := range files {
		err = errors.Join(err, f.File.Close())
	}
	if err != nil {
		return api.Snapshot{}, err
	}
	return stage.Adopt(ctx, r.Manifest)
}

// File is one of a snapshot that is being received.
type File struct {
	Name string // in the store
	File *os.File
}

// Targets are all files but one.
func Targets(files []File, but string) (list []remote.Target) {
	for _, f := range files {
		if f.Name != but {
			list = append(list, remote.Target{Name: f.Name, To: f.File})
		}
	}
	return list
}

// Stage makes the snapshot's files, of holes, as they are to be when all has come.
func (r *Found) Stage(stage *snapshot.Staging) (files []File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.File.Close()
			}
			files = nil
		}
	}()
	paths := map[string]string{snapshot.PartState: stage.State(), snapshot.PartMemory: stage.Memory()}
	for _, name := range traceFiles {
		paths[traceDir+name] = filepath.Join(stage.Trace(), name)
	}
	for _, c := range r.Stored.Files {
		path, ok := paths[c.Name]
		if !ok {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return files, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, File{c.Name, f})
		if p, isPart := r.Manifest.Parts[c.Name]; isPart && p.Size != c.Size {
			return files, fmt.Errorf("%w: %s has %d bytes, its manifest says %d", remote.ErrFormat, c.Name, c.Size, p.Size)
		}
		if err := f.Truncate(c.Size); err != nil {
			return files, err
		}
	}
	return files, nil
}
