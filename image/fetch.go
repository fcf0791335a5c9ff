package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
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

func (s *Store) fetch(ctx context.Context, ref string, p Progress) (Image, error) {
	r, err := parseRef(ref)
	if err != nil {
		return Image{}, err
	}
	if r.form == formDir {
		return s.fetchDir(ctx, ref, r.path, p)
	}
	src, cleanup, err := s.open(ctx, r)
	if err != nil {
		return Image{}, err
	}
	defer cleanup()
	digest, conf, err := check(src)
	if err != nil {
		return Image{}, err
	}
	return s.once(ctx, digest, ref, func(dir string) (Config, error) {
		return configOf(conf), s.flatten(ctx, src, conf, dir, p)
	})
}

// The forms of a reference.
const (
	formRegistry      = "registry"
	formLayout        = "oci"
	formOCIArchive    = "oci-archive"
	formDockerArchive = "docker-archive"
	formDir           = "dir"
)

// reference is what a user names an image by.
type reference struct {
	form string
	path string // of a file or directory
	tag  string // within a layout or archive; "" for its only image
	name string // in a registry
}

// parseRef reads the forms that Fetcher.Fetch names. A path that ends in .tar is
// an archive of either kind.
func parseRef(ref string) (reference, error) {
	form, rest, ok := strings.Cut(ref, ":")
	if !ok || !isForm(form) {
		if strings.HasSuffix(ref, ".tar") && (filepath.IsAbs(ref) || strings.HasPrefix(ref, ".")) {
			return archiveRef(ref)
		}
		if ref == "" || strings.ContainsAny(ref, " \t\r\n") {
			return reference{}, errors.New("want a registry reference, or oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:DIR")
		}
		return reference{form: formRegistry, name: ref}, nil
	}
	r := reference{form: form, path: rest}
	if form != formDir {
		// A tag has no slash; a path's last element may have no colon.
		if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
			r.path, r.tag = rest[:i], rest[i+1:]
		}
	}
	if r.path == "" {
		return r, fmt.Errorf("no path after %q", form+":")
	}
	return r, nil
}

func isForm(s string) bool {
	switch s {
	case formLayout, formOCIArchive, formDockerArchive, formDir:
		return true
	}
	return false
}

// open finds the image that is meant, and picks the host's platform.
func (s *Store) open(ctx context.Context, r reference) (img v1.Image, cleanup func(), err error) {
	none := func() {}
	switch r.form {
	case formRegistry:
		n, err := name.ParseReference(r.name)
		if err != nil {
			return nil, none, err
		}
		img, err := remote.Image(n, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(platform()))
		return img, none, err
	case formLayout:
		img, err := fromLayout(r.path, r.tag)
		return img, none, err
	case formDockerArchive:
		var tag *name.Tag
		if r.tag != "" {
			t, err := name.NewTag(r.tag)
			if err != nil {
				return nil, none, err
			}
			tag = &t
		}
		img, err := tarball.ImageFromPath(r.path, tag)
		return img, none, err
	}
	dir, err := os.MkdirTemp(s.dir, staging)
	if err != nil {
		return nil, none, err
	}
	cleanup = func() { os.RemoveAll(dir) }
	if err = s.untarLayout(ctx, r.path, dir); err == nil {
		img, err = fromLayout(dir, r.tag)
	}
	if err != nil {
		cleanup()
		return nil, none, err
	}
	return img, cleanup, nil
}

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// fromLayout finds an image in an OCI layout: the one with the tag, or else the
// only one there is for this platform.
func fromLayout(dir, tag string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the OCI layout %s: %w", dir, err)
	}
	idx, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	return fromIndex(idx, tag, 0)
}

func fromIndex(idx v1.ImageIndex, tag string, depth int) (v1.Image, error) {
	if depth > 4 {
		return nil, errors.New("index images are nested too deep")
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, d := range m.Manifests {
		named := tag == "" || d.Annotations["org.opencontainers.image.ref.name"] == tag
		if named && (d.Platform == nil || d.Platform.Satisfies(platform())) && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0 && tag != "":
		return nil, fmt.Errorf("no image with tag %q for %s", tag, platform())
	case len(found) == 0:
		return nil, fmt.Errorf("no image for %s", platform())
	case len(found) > 1 && depth == 0:
		return nil, fmt.Errorf("there are %d images: name one by its tag", len(found))
	}
	if found[0].MediaType.IsIndex() {
		inner, err := idx.ImageIndex(found[0].Digest)
		if err != nil {
			return nil, err
		}
		return fromIndex(inner, "", depth+1)
	}
	return idx.Image(found[0].Digest)
}

// check compares the image's manifest and configuration with their digests, and
// returns what the layers are checked against later.
func check(img v1.Image) (digest string, conf *v1.ConfigFile, err error) {
	h, err := img.Digest()
	if err != nil {
		return "", nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return "", nil, err
	}
	if got := digestOf(raw); got != h.String() {
		return "", nil, fmt.Errorf("its manifest has digest %s, not %s", got, h)
	}
	m, err := img.Manifest()
	if err != nil {
		return "", nil, err
	}
	rawConf, err := img.RawConfigFile()
	if err != nil {
		return "", nil, err
	}
	if got := digestOf(rawConf); got != m.Config.Digest.String() {
		return "", nil, fmt.Errorf("its configuration has digest %s, the manifest says %s", got, m.Config.Digest)
	}
	if conf, err = img.ConfigFile(); err != nil {
		return "", nil, err
	}
	if len(conf.RootFS.DiffIDs) != len(m.Layers) {
		return "", nil, fmt.Errorf("it has %d layers, its configuration lists %d", len(m.Layers), len(conf.RootFS.DiffIDs))
	}
	if conf.OS != "" && conf.OS != "linux" || conf.Architecture != "" && conf.Architecture != runtime.GOARCH {
		return "", nil, fmt.Errorf("it is for %s/%s, this host runs linux/%s", conf.OS, conf.Architecture, runtime.GOARCH)
	}
	return h.String(), conf, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func configOf(c *v1.ConfigFile) Config {
	return Config{Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, StopSignal: c.Config.StopSignal}
}
