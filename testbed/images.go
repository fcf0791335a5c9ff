package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/functions/inputs"
	"github.com/skep-dev/skep/image"
)

// imagesIn is where the host has the disk of functions' images:
//
//	cache            what belongs into skep's cache: the images' layouts without layers, the S3 server's inputs
//	disks/FUNCTION   the root disk of its image, as a directory of an image store
//
// Making an image needs a network, and making a root disk of it minutes of an
// emulated host; both are made on this machine.
const imagesIn = "/testbed/images"

// imagesVersion is part of the disk's key: raise it when its form changes.
const imagesVersion = "2"

// imagesDisk opens the disk with the images of functions.
func imagesDisk(ctx context.Context, names []string) (*os.File, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	refs := map[string]string{} // by function
	key, s3 := []string{imagesVersion}, ""
	for _, name := range names {
		if name == "hello" {
			continue // the host makes it of its program
		}
		ref, err := functions.Build(ctx, filepath.Join(cache, "skep", "functions"), name, func(step string) { say("%s: %s", name, step) })
		if err != nil {
			return nil, err
		}
		f, err := functions.Settings(name)
		if err != nil {
			return nil, err
		}
		if f.Egress == api.EgressHost {
			s3 = filepath.Join(cache, "skep", "s3")
		}
		refs[name], key = ref, append(key, ref)
	}
	return cachedDisk("images", strings.Join(key, " "), func(w io.Writer) error {
		say("making a disk of the functions' images: %s", strings.Join(names, " "))
		return archiveImages(ctx, refs, s3, w)
	})
}

// archiveImages writes the disk's contents: the images of functions, and what the
// S3 server has in a directory, "" if nobody asks it.
func archiveImages(ctx context.Context, refs map[string]string, s3 string, w io.Writer) error {
	dir, err := os.MkdirTemp(cacheDir, "images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, err := image.Open(filepath.Join(dir, "store"), image.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	t := tar.NewWriter(w)
	a := archive{w: t, dirs: map[string]bool{".": true}}
	if err := addDirs(t, a.dirs, "cache"); err != nil { // also where no function has an image
		return err
	}
	for name, ref := range refs {
		layoutDir, ok := strings.CutPrefix(ref, "oci:")
		if !ok {
			return fmt.Errorf("function %s is %s: want an OCI layout", name, ref)
		}
		layers, err := layersOf(layoutDir)
		if err != nil {
			return fmt.Errorf("reading the image of %s: %w", name, err)
		}
		if err := a.add(path.Join("cache/functions", filepath.Base(layoutDir)), layoutDir, layers); err != nil {
			return err
		}
		img, err := store.Fetch(ctx, ref, nil)
		if err != nil {
			return err
		}
		from := filepath.Dir(img.Disk)
		err = a.add(path.Join("disks", name, filepath.Base(from)), from, nil)
		if err := errors.Join(err, store.Remove(img.Digest)); err != nil { // the room of one at a time
			return err
		}
	}
	if s3 != "" {
		if err := errors.Join(inputs.Write(s3), a.add("cache/s3", s3, nil)); err != nil {
			return err
		}
	}
	return t.Close()
}

// layersOf are the names of the layers' blobs in an OCI layout.
func layersOf(dir string) (names []string, err error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		img, err := p.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		of, err := img.Manifest()
		if err != nil {
			return nil, err
		}
		for _, l := range of.Layers {
			names = append(names, l.Digest.Hex)
		}
	}
	return names, nil
}

// archive is a tar archive that is being written.
type archive struct {
	w    *tar.Writer
	dirs map[string]bool
}

// add adds the regular files below a directory, but those of the names left out.
func (a archive) add(to, from string, without []string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(without, d.Name()) {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		at := path.Join(to, filepath.ToSlash(rel))
		if err := addDirs(a.w, a.dirs, path.Dir(at)); err != nil {
			return err
		}
		return addFile(a.w, at, name)
	})
}
