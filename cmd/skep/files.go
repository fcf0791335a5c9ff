package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/skep-dev/skep/image"
)

// filesOf lists the files that a restore of the function reads: everything of
// its newest usable snapshot, trace and working set included, and its root disk.
func (d *daemon) filesOf(ctx context.Context, function string) ([]string, error) {
	img, err := d.imageOf(function)
	if err != nil {
		return nil, err
	}
	files := []string{img.Disk}
	list, err := d.node.Snapshots(ctx, function)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if !s.Usable {
			continue
		}
		dir, err := d.node.SnapshotDir(s.ID)
		if err != nil {
			return nil, err
		}
		err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // a recording that was renamed meanwhile
				return nil
			}
			if err == nil && e.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		return files, err
	}
	return files, nil
}

// imageOf is the image of a function, whose root disk its machines have.
func (d *daemon) imageOf(function string) (image.Image, error) {
	f, ok := d.node.Function(function)
	if !ok {
		return image.Image{}, fmt.Errorf("function %q is gone", function)
	}
	img, err := d.images.Get(f.ImageDigest)
	if err != nil {
		return img, fmt.Errorf("finding the root disk of %s: %w", function, err)
	}
	return img, nil
}
