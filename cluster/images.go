package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// importImages gives the cluster its images, unless it has them.
func (c *Cluster) importImages(ctx context.Context, coredns string) error {
	images := map[string]v1.Image{}
	for ref, program := range map[string]string{PauseImage: c.opts.Pause, DNSImage: coredns, HelloImage: filepath.Join(c.opts.Skep, "skep-hello")} {
		config := v1.Config{Env: []string{"PATH=/"}}
		if ref == HelloImage {
			config.ExposedPorts = map[string]struct{}{"8080/tcp": {}}
		}
		img, err := Image(program, config)
		if err != nil { // no other try has another program
			return &refusedError{fmt.Errorf("making image %s: %w; `make build` makes skep's programs", ref, err)}
		}
		images[ref] = img
	}
	for ref, img := range images {
		if err := c.Import(ctx, ref, img); err != nil {
			return err
		}
	}
	return nil
}

// Image is one of a single static program, which is its entry point.
func Image(program string, config v1.Config) (v1.Image, error) {
	at := "/" + filepath.Base(program)
	config.Entrypoint = []string{at}
	return imageOf([]file{{from: program, to: at}}, config)
}

// file is one of this host that is in an image.
type file struct {
	from, to string
}

// imageOf is an image of programs and of what they are linked with, and the few files
// that look up who runs them.
func imageOf(files []file, config v1.Config) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(name string, mode int64, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(data)), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f.from)
		if err == nil {
			err = add(f.to, 0o755, b)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(add("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n")), add("etc/group", 0o644, []byte("root:x:0:\n"))); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }, tarball.WithCompression(compression.None))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	described, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	described = described.DeepCopy()
	described.OS, described.Architecture, described.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, described)
}

// Import gives the cluster an image under a name, unless it has it.
func (c *Cluster) Import(ctx context.Context, ref string, img v1.Image) error {
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	list, err := c.Command(ctx, "ctr", "-n", "k8s.io", "images", "ls", "name=="+ref).Output()
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	if strings.Contains(string(list), digest.String()) {
		return nil
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, "image-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := tarball.Write(tag, img, f); err != nil {
		return fmt.Errorf("writing image %s: %w", ref, err)
	}
	if err := c.ImportArchive(ctx, f.Name()); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}
