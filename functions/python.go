package functions

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// pythonFunction is a function of one file, server.py, and the distribution's
// packages that it needs.
type pythonFunction struct {
	name     string
	packages []string
}

// buildPython makes an OCI layout of two layers: the base with the packages,
// shared by all functions that need the same, and the function's file.
func buildPython(ctx context.Context, cacheDir string, f pythonFunction, step func(string)) (string, error) {
	code, err := sources.ReadFile(f.name + "/server.py")
	if err != nil {
		return "", err
	}
	base, key, err := pythonBase(ctx, cacheDir, f.packages, step)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(key), code...))
	final := filepath.Join(cacheDir, f.name+"-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(final); err == nil {
		return "oci:" + final, nil
	}
	step("writing the image")
	dir, err := atomicfile.Stage(cacheDir, f.name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := writeLayout(dir, base, code); err != nil {
		return "", err
	}
	return "oci:" + final, publish(dir, final)
}

// writeLayout writes the image of a function as an OCI layout. The base is not
// copied into it but linked, so ten functions take the space of one base.
func writeLayout(dir, base string, code []byte) error {
	lower, err := newFileLayer(base)
	if err != nil {
		return err
	}
	img, err := pythonImage(lower, code)
	if err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	blobs := filepath.Join(dir, "blobs", lower.digest.Algorithm)
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	// Where the file system has no links, AppendImage writes a copy.
	_ = os.Link(base, filepath.Join(blobs, lower.digest.Hex))
	return p.AppendImage(img)
}

func pythonImage(lower v1.Layer, code []byte) (v1.Image, error) {
	var upper bytes.Buffer
	w := tar.NewWriter(&upper)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "app/", Mode: 0o755}); err != nil {
		return nil, err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "app/server.py", Mode: 0o644, Size: int64(len(code))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(code); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), lower, static.NewLayer(upper.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		return nil, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", runtime.GOARCH
	conf.Config.Entrypoint = []string{"/usr/bin/python3", "/app/server.py"}
	conf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1"}
	return mutate.ConfigFile(img, conf)
}

// fileLayer is a layer that lies as a tar file on disk.
type fileLayer struct {
	path   string
	digest v1.Hash
	size   int64
}

var _ v1.Layer = (*fileLayer)(nil)

func newFileLayer(path string) (*fileLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, n, err := v1.SHA256(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return &fileLayer{path, h, n}, nil
}

func (l *fileLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
