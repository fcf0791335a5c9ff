package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skep-dev/skep/containerd"
)

// NodeImage is the name of the image that deploy/ runs on nodes.
const NodeImage = "skep.local/node:v1"

// WriteNodeImage writes the image as an archive that `ctr images import` and
// `docker load` read: skep's programs, statically linked, and a guest kernel.
func WriteNodeImage(_ context.Context, path, programs, kernels string) error {
	const bin = "/usr/local/bin/"
	var files []file
	for _, p := range append([]string{"skep"}, containerd.Programs...) {
		files = append(files, file{from: filepath.Join(programs, p), to: bin + p})
	}
	err := filepath.WalkDir(kernels, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(kernels, path)
		if err == nil && filepath.Dir(rel) != "." { // a kernel, and not a lock
			files = append(files, file{from: path, to: filepath.Join(bin, "kernels", rel)})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading guest kernels: %w", err)
	}
	img, err := imageOf(files, v1.Config{Env: []string{"PATH=" + filepath.Clean(bin)}, Entrypoint: []string{bin + "skep"}})
	if err != nil {
		return err
	}
	tag, err := name.NewTag(NodeImage)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	defer f.Close()
	if err := tarball.Write(tag, img, f); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}
