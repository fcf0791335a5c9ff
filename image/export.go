package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WriteArchive writes a directory image (see ConfigFile) as an archive that other
// container tools read, `ctr image import` and `docker load` among them, under a name
// such as "example.com/hello:v1". The directory must not change meanwhile.
func WriteArchive(ctx context.Context, w io.Writer, dir, tag string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("image name %q: %w", tag, err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return ofPath(err)
	}
	conf, err := readConfig(dir)
	if err != nil {
		return ofPath(err)
	}
	s := &Store{opts: Options{}.withDefaults()}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() {
			t := tar.NewWriter(w)
			err := s.writeDir(ctx, t, dir, &counter{p: func(string, int64, int64) {}})
			w.CloseWithError(errors.Join(err, t.Close()))
		}()
		return r, nil
	})
	if err != nil {
		return fmt.Errorf("image of %s: %w", dir, err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("image of %s: %w", dir, err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Entrypoint: conf.Entrypoint, Cmd: conf.Cmd, Env: conf.Env, WorkingDir: conf.WorkingDir, User: conf.User, StopSignal: conf.StopSignal}
	for _, p := range conf.Exposed {
		if file.Config.ExposedPorts == nil {
			file.Config.ExposedPorts = map[string]struct{}{}
		}
		file.Config.ExposedPorts[p] = struct{}{}
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return err
	}
	return tarball.Write(ref, img, w)
}
