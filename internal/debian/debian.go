// Package debian makes root file systems from the packages of the host's
// distribution, Debian or Ubuntu, with mmdebstrap: bases of built-in functions
// and of the testbed. It stands beside the way of an invocation.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Root says what to make.
type Root struct {
	Release  string   // code name; "" is the host's
	Variant  string   // of mmdebstrap; "" is "extract": unpacked, not configured
	Packages []string // besides the variant's own
	Args     []string // further ones for mmdebstrap
}

// Bootstrap has mmdebstrap make the root and writes it to w as a tar archive.
func Bootstrap(ctx context.Context, r Root, w io.Writer) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return errors.New("making a root from packages needs mmdebstrap: apt-get install mmdebstrap")
	}
	if r.Release == "" {
		var err error
		if r.Release, err = Release(); err != nil {
			return err
		}
	}
	if r.Variant == "" {
		r.Variant = "extract"
	}
	sources, err := sources(r.Release)
	if err != nil {
		return err
	}
	args := []string{"--quiet", "--variant=" + r.Variant, "--include=" + strings.Join(r.Packages, ","), "--format=tar"}
	if os.Geteuid() == 0 {
		args = append(args, "--mode=root")
	}
	if hooks := "/usr/share/mmdebstrap/hooks/merged-usr"; exists(hooks) {
		args = append(args, "--hook-dir="+hooks)
	}
	args = append(append(append(args, r.Args...), r.Release, "-"), sources...)
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it unmounts and cleans up
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0")                    // a stable order
	cmd.WaitDelay = 20 * time.Second
	cmd.Stdout, cmd.Stderr = w, &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// sources lists the host's package sources: those that are about the release,
// since others may need what mmdebstrap does not have; or all.
func sources(release string) ([]string, error) {
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

// Release is the code name of the host's distribution release.
func Release() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", errors.New("/etc/os-release names no release: packages come from Debian or Ubuntu only")
}
