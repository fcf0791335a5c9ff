// Package containerd makes skep known to a containerd of the host's: it installs
// the shim and the agent, and writes the runtime into containerd's configuration.
// `skep containerd` and `skep doctor` call it. What the shim itself is made of is
// in package shim.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Runtime is the runtime's name in containerd, Handler what the CRI calls it.
const (
	Runtime = "io.containerd.skep.v2"
	Handler = "skep"
)

// Programs that are installed; containerd finds the shim on its PATH, the shim
// the others beside itself.
var Programs = []string{"containerd-shim-skep-v2", "skep-agent", "skep-store"}

// Host is where a containerd and skep's programs are. The zero value is the usual
// one, of this host.
type Host struct {
	Root    string // directory that is taken for "/"; "" for it
	BinDir  string // default /usr/local/bin, which is on the PATH of services
	Config  string // containerd's configuration; default /etc/containerd/config.toml
	DataDir string // what shims share; default /var/lib/skep-containerd
	// SettingsFrom is a directory with settings of shims, of which those files are
	// installed into /etc/skep that are there; "": settings are left alone.
	SettingsFrom string
	// Containerd is its program; default the first of that name on the PATH. It
	// need not be there where Version is set.
	Containerd string
	Version    string // of containerd: "1.6.20"; "" asks Containerd
	// Kernel puts a guest kernel into dir unless one is there, and says what it did;
	// nil leaves that out.
	Kernel func(ctx context.Context, dir string) (step string, err error)
}

// SocketDir has the sockets of skep's shims, beside those of containerd's own.
const SocketDir = "/run/containerd/skep"

// KernelDir is where, below DataDir, shims look for the guest kernel.
const KernelDir = "kernels"

func (h Host) withDefaults() Host {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&h.BinDir, "/usr/local/bin")
	def(&h.Config, "/etc/containerd/config.toml")
	def(&h.DataDir, defaultDataDir)
	def(&h.Containerd, "containerd")
	return h
}

func (h Host) path(p string) string { return filepath.Join(h.Root, p) }

// version of a containerd, as far as its configuration depends on it.
type version struct{ major, minor int }

// atLeast tells whether it is that version or a later one.
func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

// version finds containerd's.
func (h Host) version(ctx context.Context) (version, error) {
	text := h.Version
	if text == "" {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := h.command(ctx, "--version").Output()
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return version{}, fmt.Errorf("%s is not here: install containerd, or name its program with --containerd", h.Containerd)
		}
		if err != nil {
			return version{}, fmt.Errorf("asking %s for its version: %w", h.Containerd, err)
		}
		words := strings.Fields(string(out)) // containerd github.com/containerd/containerd 1.6.20~ds1 REVISION
		if len(words) < 3 {
			return version{}, fmt.Errorf("%s --version says %q", h.Containerd, out)
		}
		text = words[2]
	}
	numbers := strings.SplitN(strings.TrimPrefix(text, "v"), ".", 3)
	if len(numbers) > 1 {
		major, err1 := strconv.Atoi(numbers[0])
		minor, err2 := strconv.Atoi(numbers[1])
		if v := (version{major, minor}); err1 == nil && err2 == nil {
			if !v.atLeast(1, 6) {
				return v, fmt.Errorf("containerd is %s: skep needs 1.6 or later", text)
			}
			return v, nil
		}
	}
	return version{}, fmt.Errorf("containerd's version is %q: want one such as 1.7.28", text)
}

// searched is where a containerd of another root is looked for.
var searched = []string{"/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin"}

// inRoot is the path of the containerd below Root, as it is there; "" is none.
func (h Host) inRoot() string {
	if h.Root == "" {
		return ""
	}
	if filepath.IsAbs(h.Containerd) {
		if exists(h.path(h.Containerd)) {
			return h.Containerd
		}
		return ""
	}
	for _, dir := range searched {
		if path := filepath.Join(dir, h.Containerd); exists(h.path(path)) {
			return path
		}
	}
	return ""
}

// command is one of containerd's: with Root of the one that is there, which has its
// libraries there, and sees paths as they are there.
func (h Host) command(ctx context.Context, args ...string) *exec.Cmd {
	path := h.inRoot()
	if path == "" {
		return exec.CommandContext(ctx, h.Containerd, args...)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Err = "/", nil // it is not looked for here
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.Root}
	return cmd
}

// check asks containerd whether it takes a configuration, and has the runtime
// by it. Where its program is not there nothing is asked.
func (h Host) check(ctx context.Context, config string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := h.command(ctx, "--config", config, "config", "dump")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("containerd would not take the configuration: %w: %s", err, strings.TrimSpace(errs.String()))
	case !strings.Contains(string(out), Runtime):
		return fmt.Errorf("containerd would not see the runtime in %s", config)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
