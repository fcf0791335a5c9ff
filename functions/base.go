package functions

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/debian"
)

// baseVersion is part of the base's key: raise it when what is left out, or
// done to it, changes.
const baseVersion = "4"

// pythonBase is the layer with some packages of a release: made from the host's
// own package sources, once for each release and list of packages. It stays as it
// is until the cache is removed.
type pythonBase struct {
	release  string
	packages []string
}

// key is what the base is known by.
func (b pythonBase) key() string {
	return strings.Join(append([]string{baseVersion, b.release}, b.packages...), " ")
}

// make returns the base's path, and makes it if it is not there.
func (b pythonBase) make(ctx context.Context, cacheDir string, step func(string)) (path string, err error) {
	sum := sha256.Sum256([]byte(b.key()))
	path = filepath.Join(cacheDir, "base-"+hex.EncodeToString(sum[:8])+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	step("making the base from packages: " + strings.Join(b.packages, " "))
	root, err := baseRoot(b.release, filepath.Join(cacheDir, "packages"), b.packages)
	if err != nil {
		return "", err
	}
	return path, atomicfile.Write(path, 0o644, func(w io.Writer) error { return bootstrap(ctx, root, w) })
}

// compileHook has Python compile its library in the new root. Packages do that
// when they are configured, which these are not; without it, every boot would.
const compileHook = `for d in "$1"/usr/lib/python3*; do ` +
	`chroot "$1" /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash "${d#"$1"}" || :; done`

// linkHook does what two packages' scripts would: they choose among the linear
// algebra libraries that are there.
const linkHook = `for l in "$1"/usr/lib/*/blas/libblas.so.3 "$1"/usr/lib/*/lapack/liblapack.so.3; do ` +
	`if [ -e "$l" ]; then d=${l%/*}; ln -sf "${d##*/}/${l##*/}" "${d%/*}/"; fi; done`

// baseRoot unpacks packages, without running their scripts. What is downloaded
// stays in debs, so that bases share it.
func baseRoot(release, debs string, packages []string) (debian.Root, error) {
	const archives = "/var/cache/apt/archives"
	return debian.Root{Release: release, Packages: packages, Args: []string{
		"--skip=download/empty", "--skip=essential/unlink",
		"--setup-hook=mkdir -p \"$1\"" + archives, "--setup-hook=sync-in '" + debs + "' " + archives,
		"--extract-hook=sync-out " + archives + " '" + debs + "'",
		"--extract-hook=" + compileHook, "--extract-hook=" + linkHook,
	}}, os.MkdirAll(debs, 0o755)
}

// bootstrap makes a root and writes it without what is dropped.
func bootstrap(ctx context.Context, root debian.Root, to io.Writer) error {
	raw, w := io.Pipe()
	trimmed := make(chan error, 1)
	go func() {
		err := trim(raw, to)
		raw.CloseWithError(err) // so that mmdebstrap ends, too
		trimmed <- err
	}()
	w.CloseWithError(debian.Bootstrap(ctx, root, w))
	return <-trimmed // either's error
}

// dropped is what a function never reads: directories, but for themselves, and
// patterns of files. Some of it tells of the host that the base is made on, some
// is for graphics cards.
var dropped = []string{
	"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/icons/", "usr/share/proj/",
	"usr/include/", "usr/lib/gcc/", "usr/lib/libtorch-test/", "usr/lib/x86_64-linux-gnu/dri/", "usr/lib/*/libLLVM*",
	"var/lib/apt/", "var/cache/", "etc/apt/", "etc/hostname", "etc/resolv.conf", "dev/",
}

// trim copies a root without what is dropped.
func trim(raw io.Reader, to io.Writer) error {
	w := tar.NewWriter(to)
	for r := tar.NewReader(raw); ; {
		h, err := r.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, raw) // the archive's padding
			return errors.Join(err, w.Close())
		}
		if err != nil {
			return err
		}
		if name := strings.TrimPrefix(h.Name, "./"); isDropped(name) {
			continue
		}
		// No time of making them, so that one set of packages is one layer. The
		// compiled Python files do not look at the times of their sources.
		h.ModTime, h.AccessTime, h.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
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
		if strings.HasSuffix(d, "/") {
			if name != d && strings.HasPrefix(name, d) {
				return true
			}
		} else if match, err := path.Match(d, name); err == nil && match {
			return true
		}
	}
	return false
}
