package functions

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// pythonFunction is a function of one file, server.py, and the distribution's
// packages that it needs.
type pythonFunction struct {
	name     string
	packages []string
}

// baseVersion is part of the base's key: raise it when what is left out changes.
const baseVersion = "1"

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
	img, err := pythonImage(base, code)
	if err != nil {
		return "", err
	}
	dir, err := atomicfile.Stage(cacheDir, f.name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", err
	}
	if err := p.AppendImage(img); err != nil {
		return "", err
	}
	return "oci:" + final, publish(dir, final)
}

func pythonImage(base string, code []byte) (v1.Image, error) {
	lower, err := tarball.LayerFromFile(base, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
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
	conf.OS, conf.Architecture = "linux", "amd64"
	conf.Config.Entrypoint = []string{"/usr/bin/python3", "/app/server.py"}
	conf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1"}
	return mutate.ConfigFile(img, conf)
}

// pythonBase makes the layer with the packages, from the host's own package
// sources, once for each release and list of packages.
func pythonBase(ctx context.Context, cacheDir string, packages []string, step func(string)) (path, key string, err error) {
	release, err := osRelease()
	if err != nil {
		return "", "", err
	}
	key = strings.Join(append([]string{baseVersion, release}, packages...), " ")
	sum := sha256.Sum256([]byte(key))
	path = filepath.Join(cacheDir, "base-"+hex.EncodeToString(sum[:8])+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, key, nil
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", "", errors.New("making a base without a registry needs mmdebstrap: apt-get install mmdebstrap")
	}
	step("making the base from packages: " + strings.Join(packages, " "))
	dir, err := os.MkdirTemp(cacheDir, ".base-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	raw := filepath.Join(dir, "raw.tar")
	if err := bootstrap(ctx, release, packages, raw); err != nil {
		return "", "", err
	}
	err = atomicfile.Write(path, 0o644, func(w io.Writer) error { return trim(raw, w) })
	return path, key, err
}

// bootstrap has mmdebstrap unpack packages, without running anything in them.
func bootstrap(ctx context.Context, release string, packages []string, out string) error {
	args := []string{"--quiet", "--mode=root", "--variant=extract", "--include=" + strings.Join(packages, ","), "--format=tar"}
	if hooks := "/usr/share/mmdebstrap/hooks/merged-usr"; exists(hooks) {
		args = append(args, "--hook-dir="+hooks)
	}
	args = append(args, release, out)
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			if st, err := os.Stat(f); err == nil && st.Size() > 0 {
				args = append(args, f)
			}
		}
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, strings.TrimSpace(string(b)))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dropped is what a function never reads.
var dropped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "var/lib/apt/", "var/cache/", "etc/apt/", "dev/"}

// trim copies a root without what is dropped.
func trim(raw string, to io.Writer) error {
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(to)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return w.Close()
		}
		if err != nil {
			return err
		}
		if name := strings.TrimPrefix(h.Name, "./"); isDropped(name) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}

func isDropped(name string) bool {
	for _, d := range dropped {
		if strings.HasPrefix(name, d) && name != d {
			return true
		}
	}
	return false
}

// osRelease is the code name of the host's distribution release.
func osRelease() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", errors.New("/etc/os-release names no release: the base can be made on Debian and Ubuntu only")
}
