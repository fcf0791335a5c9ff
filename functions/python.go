package functions

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/debian"
)

// pythonFunction is a function in Python: the files of its directory, those of
// shared/, and the distribution's packages that base/ lists for it.
type pythonFunction struct {
	name  string
	base  string
	alone bool // without the files of shared/
}

// buildPython makes an OCI layout of two layers: the base with the packages,
// shared by all functions that need the same, and the function's files.
func buildPython(ctx context.Context, cacheDir string, f pythonFunction, step func(string)) (string, error) {
	files, err := f.files()
	if err != nil {
		return "", err
	}
	list, err := sources.ReadFile("base/" + f.base + ".txt")
	if err != nil {
		return "", err
	}
	release, err := debian.Release()
	if err != nil {
		return "", err
	}
	b := pythonBase{release: release, packages: strings.Fields(string(list))}
	final := filepath.Join(cacheDir, f.name+"-"+digest(b.key(), files))
	if _, err := os.Stat(final); err == nil { // what it was made of need not be there any more
		return "oci:" + final, nil
	}
	base, err := b.make(ctx, cacheDir, step)
	if err != nil {
		return "", err
	}
	if files["app/model.py"] != nil {
		step("training the model")
		if err := addModel(ctx, cacheDir, base, files); err != nil {
			return "", fmt.Errorf("training the model: %w", err)
		}
	}
	step("writing the image")
	staged, err := atomicfile.Stage(cacheDir, f.name)
	if err != nil {
		return "", err
	}
	defer staged.Close()
	if err := writeLayout(staged.Dir, base, files); err != nil {
		return "", err
	}
	return "oci:" + final, publish(staged, final)
}

// files are what goes into the function's layer, by path.
func (f pythonFunction) files() (map[string][]byte, error) {
	files := make(map[string][]byte)
	dirs := []string{"shared", f.name}
	if f.alone {
		dirs = dirs[1:]
	}
	for _, dir := range dirs {
		entries, err := sources.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if path.Ext(e.Name()) != ".py" {
				continue
			}
			if files["app/"+e.Name()], err = sources.ReadFile(path.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// digest is that of a base's key and files, short enough for a file's name.
func digest(key string, files map[string][]byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", key)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(files[name]))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// writeLayout writes the image of a function as an OCI layout. The base is not
// copied into it but linked, so ten functions take the space of one base.
func writeLayout(dir, base string, files map[string][]byte) error {
	lower, err := newFileLayer(base)
	if err != nil {
		return err
	}
	img, err := pythonImage(lower, files)
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

func pythonImage(lower v1.Layer, files map[string][]byte) (v1.Image, error) {
	upper, err := filesLayer(files)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), lower, upper)
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
	conf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1", oneThread}
	return mutate.ConfigFile(img, conf)
}

// oneThread keeps libraries from starting a thread for each CPU.
const oneThread = "OMP_NUM_THREADS=1"

// filesLayer is a layer of files in /app.
func filesLayer(files map[string][]byte) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "app/", Mode: 0o755}); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(out.Bytes(), types.OCIUncompressedLayer), nil
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
