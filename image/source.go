package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// source is an image whose manifest and configuration were checked.
type source struct {
	img    v1.Image
	digest string
	conf   *v1.ConfigFile // lists the digests that the layers are checked against
	// plain: the layers lie decompressed, and asking for their compressed sizes
	// and digests would compress them.
	plain  bool
	remote bool // in a registry
}

func (s source) read(l v1.Layer) (io.ReadCloser, error) {
	if s.plain {
		return l.Uncompressed()
	}
	return l.Compressed()
}

// size is how many bytes read will give.
func (s source) size(l v1.Layer) (int64, error) {
	if s.plain {
		return 0, errors.ErrUnsupported
	}
	return l.Size()
}

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// check compares an image's manifest and configuration with their digests.
func check(img v1.Image) (src source, err error) {
	h, err := img.Digest()
	if err != nil {
		return src, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return src, err
	}
	if got := digestOf(raw); got != h.String() {
		return src, fmt.Errorf("its manifest has digest %s, not %s", got, h)
	}
	m, err := img.Manifest()
	if err != nil {
		return src, err
	}
	if m.Config.Size > maxJSON {
		return src, as(ErrTooLarge, fmt.Errorf("its configuration has %d bytes: %d are allowed", m.Config.Size, maxJSON))
	}
	rawConf, err := img.RawConfigFile()
	if err != nil {
		return src, err
	}
	if got := digestOf(rawConf); got != m.Config.Digest.String() {
		return src, fmt.Errorf("its configuration has digest %s, the manifest says %s", got, m.Config.Digest)
	}
	src = source{img: img, digest: h.String()}
	if src.conf, err = img.ConfigFile(); err != nil {
		return src, fmt.Errorf("reading its configuration: %w", err)
	}
	return src, src.fits(len(m.Layers))
}

// checkPlain is check for what docker save wrote. That has no manifest with
// digests, so the image is known by the digest of its configuration, which the
// content of its layers is part of.
func checkPlain(img v1.Image) (src source, err error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return src, err
	}
	src = source{img: img, digest: digestOf(raw), plain: true}
	if src.conf, err = img.ConfigFile(); err != nil {
		return src, fmt.Errorf("reading its configuration: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return src, err
	}
	return src, src.fits(len(layers))
}

// fits checks what the configuration says against the layers and this host.
func (s source) fits(layers int) error {
	c := s.conf
	switch {
	case layers == 0:
		return errors.New("it has no layers")
	case layers > maxLayers:
		return as(ErrTooLarge, fmt.Errorf("it has %d layers: %d are allowed", layers, maxLayers))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return fmt.Errorf("it has %d layers, its configuration lists %d", layers, len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return fmt.Errorf("its configuration has a digest of kind %q: want sha256", d.Algorithm)
		}
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return as(ErrPlatform, fmt.Errorf("it is for %s/%s, this host runs linux/%s", c.OS, c.Architecture, runtime.GOARCH))
	}
	return configOf(c).check()
}

// maxLayers is more than any overlay file system takes.
const maxLayers = 1000

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func configOf(c *v1.ConfigFile) Config {
	return Config{Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, StopSignal: c.Config.StopSignal, Exposed: slices.Sorted(maps.Keys(c.Config.ExposedPorts))}
}
