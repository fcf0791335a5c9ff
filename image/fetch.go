package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Fetch makes the image that ref names into a root disk, or finds it there.
func (s *Store) Fetch(ctx context.Context, ref string, p Progress) (Image, error) {
	if p == nil {
		p = func(string, int64, int64) {}
	}
	img, err := s.fetch(ctx, ref, p)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// FetchImage is Fetch of an image that the caller has: somebody else's store of
// content is behind it. It is checked like any other; ref says where it is from.
func (s *Store) FetchImage(ctx context.Context, ref string, img v1.Image) (Image, error) {
	src, err := check(img)
	if err == nil {
		var out Image
		out, err = s.once(ctx, src.digest, ref, func(dir string) (Config, error) {
			return configOf(src.conf), s.flatten(ctx, src, dir, func(string, int64, int64) {})
		})
		if err == nil {
			return out, nil
		}
	}
	return Image{}, fmt.Errorf("image %s: %w", ref, err)
}

// FetchTree makes a root directory of this host's into a root disk, or finds it
// there: it is known by its content. It is "dir:" without a Config.
func (s *Store) FetchTree(ctx context.Context, ref, dir string) (Image, error) {
	img, err := s.fetchTree(ctx, ref, dir, Config{}, func(string, int64, int64) {})
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, malformed(err))
	}
	return img, nil
}

func (s *Store) fetch(ctx context.Context, ref string, p Progress) (Image, error) {
	r, err := parseRef(ref)
	if err != nil {
		return Image{}, as(ErrReference, err)
	}
	if r.form == formDir {
		img, err := s.fetchDir(ctx, ref, r.path, p)
		return img, malformed(err)
	}
	src, cleanup, err := s.open(ctx, r)
	if err != nil && r.form == formRegistry {
		return Image{}, ofRegistry(err)
	}
	if err != nil {
		return Image{}, ofPath(err)
	}
	defer cleanup()
	return s.once(ctx, src.digest, ref, func(dir string) (Config, error) {
		return configOf(src.conf), s.flatten(ctx, src, dir, p)
	})
}

// open finds the image that is meant, picks the host's platform, and checks all
// but the layers. cleanup is never nil.
func (s *Store) open(ctx context.Context, r reference) (src source, cleanup func(), err error) {
	none := func() {}
	switch r.form {
	case formRegistry:
		img, err := remote.Image(r.name, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(platform()))
		if err != nil {
			return src, none, err
		}
		src, err = check(img)
		src.remote = true
		return src, none, err
	case formLayout:
		src, err = fromLayout(r.path, r.tag)
		return src, none, err
	}
	staged, err := atomicfile.Stage(s.dir, "archive")
	if err != nil {
		return src, none, err
	}
	if src, err = s.fromArchive(ctx, r, staged.Dir); err != nil {
		return src, none, errors.Join(err, staged.Close())
	}
	return src, func() {
		if err := staged.Close(); err != nil {
			s.opts.Logger.Warn("removing an unpacked archive", "path", staged.Dir, "error", err)
		}
	}, nil
}

// fromArchive opens an image in a tar file; what has to be unpacked goes to dir.
func (s *Store) fromArchive(ctx context.Context, r reference, dir string) (src source, err error) {
	path, err := s.plainArchive(ctx, r.path, dir)
	if err != nil {
		return src, err
	}
	if r.form == formArchive {
		if r.form, err = archiveForm(ctx, path); err != nil {
			return src, err
		}
	}
	if r.form == formDockerArchive {
		return fromDockerArchive(path, r.tag)
	}
	unpacked := filepath.Join(dir, "layout")
	if err := os.Mkdir(unpacked, 0o700); err != nil {
		return src, err
	}
	if err := s.untarLayout(ctx, path, unpacked); err != nil {
		return src, err
	}
	return fromLayout(unpacked, r.tag)
}

func fromDockerArchive(path, tag string) (src source, err error) {
	var named *name.Tag
	if tag != "" {
		t, err := name.NewTag(tag)
		if err != nil {
			return src, err
		}
		named = &t
	}
	img, err := tarball.ImageFromPath(path, named)
	if err != nil {
		return src, fmt.Errorf("reading the archive: %w", err)
	}
	return checkPlain(img)
}

// fromLayout finds an image in an OCI layout: the one with the tag, or else the
// only one there is for this platform.
func fromLayout(dir, tag string) (src source, err error) {
	if err := smallEnough(filepath.Join(dir, "index.json")); err != nil {
		return src, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		return src, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	idx, err := p.ImageIndex()
	if err != nil {
		return src, err
	}
	img, err := fromIndex(dir, idx, tag, 0)
	if err != nil {
		return src, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return src, err
	}
	if err := smallEnough(blob(dir, m.Config.Digest)); err != nil {
		return src, err
	}
	return check(img)
}

// maxJSON bounds manifests and configurations, which are read into memory.
const maxJSON = 8 << 20

func smallEnough(path string) error {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxJSON {
		err = as(ErrTooLarge, fmt.Errorf("%s has %d bytes: %d are allowed", path, st.Size(), maxJSON))
	}
	return err
}

func blob(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }

const tagAnnotation = "org.opencontainers.image.ref.name"

// fromIndex picks an image of a layout's index: by its tag at the top, by the
// platform below.
func fromIndex(dir string, idx v1.ImageIndex, tag string, depth int) (v1.Image, error) {
	if depth > 4 {
		return nil, errors.New("index images are nested too deep")
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, d := range m.Manifests {
		named := tag == "" || d.Annotations[tagAnnotation] == tag
		if named && (d.Platform == nil || d.Platform.Satisfies(platform())) && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0 && tag != "":
		return nil, as(ErrNoImage, fmt.Errorf("no image with tag %q for %s", tag, platform()))
	case len(found) == 0:
		return nil, as(ErrPlatform, fmt.Errorf("no image for %s", platform()))
	case len(found) > 1 && depth == 0 && !same(found):
		return nil, as(ErrReference, fmt.Errorf("there are %d images: name one by its tag", len(found)))
	}
	if err := smallEnough(blob(dir, found[0].Digest)); err != nil {
		return nil, err
	}
	if found[0].MediaType.IsIndex() {
		inner, err := idx.ImageIndex(found[0].Digest)
		if err != nil {
			return nil, err
		}
		return fromIndex(dir, inner, "", depth+1)
	}
	return idx.Image(found[0].Digest)
}

// same tells whether descriptors name one image by several tags.
func same(ds []v1.Descriptor) bool {
	for _, d := range ds {
		if d.Digest != ds[0].Digest {
			return false
		}
	}
	return true
}
