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
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// baseVersion is part of the base's key: raise it when what is left out, or
// done to it, changes.
const baseVersion = "2"

// pythonBase makes the layer with the packages, from the host's own package
// sources, once for each release and list of packages. It stays as it is until
// the cache is removed.
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

// compileHook has Python compile its library in the new root. Packages do that
// when they are configured, which these are not; without it, every boot would.
const compileHook = `for d in "$1"/usr/lib/python3*; do ` +
	`chroot "$1" /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash "${d#"$1"}" || :; done`

// bootstrap has mmdebstrap unpack packages, without running their scripts.
func bootstrap(ctx context.Context, release string, packages []string, out string) error {
	args := []string{"--quiet", "--variant=extract", "--include=" + strings.Join(packages, ","), "--format=tar"}
	if os.Geteuid() == 0 {
		args = append(args, "--mode=root")
	}
	if hooks := "/usr/share/mmdebstrap/hooks/merged-usr"; exists(hooks) {
		args = append(args, "--hook-dir="+hooks)
	}
	sources, err := aptSources(release)
	if err != nil {
		return err
	}
	args = append(append(args, "--extract-hook="+compileHook, release, out), sources...)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it unmounts and cleans up
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0")                    // a stable order
	cmd.WaitDelay = 20 * time.Second
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, strings.TrimSpace(string(b)))
	}
	return nil
}

// aptSources lists the host's package sources: those that are about its release,
// since others may need what mmdebstrap does not have; or all.
func aptSources(release string) ([]string, error) {
	var all, ours []string
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			if len(bytes.TrimSpace(b)) > 0 {
				all = append(all, f)
			}
			if bytes.Contains(b, []byte(release)) {
				ours = append(ours, f)
			}
		}
	}
	switch {
	case len(ours) > 0:
		return ours, nil
	case len(all) > 0:
		return all, nil
	}
	return nil, errors.New("/etc/apt names no package sources")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// dropped is what a function never reads: directories, but for themselves, and
// files. Some of it tells of the host that the base is made on.
var dropped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "var/lib/apt/", "var/cache/", "etc/apt/", "etc/hostname", "etc/resolv.conf", "dev/"}

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
		if name == d {
			return !strings.HasSuffix(d, "/")
		}
		if strings.HasSuffix(d, "/") && strings.HasPrefix(name, d) {
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
