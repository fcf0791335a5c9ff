// Command image writes an image of a root file system, which it reads as a tar archive,
// into a file that `docker load`, `podman load` and `ctr images import` read. No
// registry and no program of containers has a part in it. packaging/image.sh calls it.
package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: image FILE NAME ENTRYPOINT... <root.tar")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3:], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// write writes the image of the root that in has.
func write(path, ref string, entrypoint []string, in io.Reader) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	root, err := os.CreateTemp("", "skep-root-")
	if err != nil {
		return err
	}
	defer os.Remove(root.Name())
	defer root.Close()
	if _, err := io.Copy(root, in); err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	layer, err := tarball.LayerFromFile(root.Name())
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", "amd64", v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config = v1.Config{
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Entrypoint: entrypoint,
		Volumes:    map[string]struct{}{"/var/lib/skep": {}},
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
