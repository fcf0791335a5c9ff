package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/containerd"
)

// configFile has settings of shims, in the form of the daemon's.
const configFile = "/etc/skep/containerd.toml"

// defaultDataDir is what all shims of a host share, defaultRunDir what belongs to
// those that run.
const (
	defaultDataDir = "/var/lib/skep-containerd"
	defaultRunDir  = "/run/skep-containerd"
)

// loadSettings reads the settings of shims: the file, and over it what stands in
// containerd's environment as SKEP_….
func loadSettings() (config.Config, error) {
	in := config.Input{Environ: os.Environ()}
	if _, err := os.Stat(configFile); err == nil {
		in.File = configFile
	} else {
		in.File = os.DevNull
	}
	r, err := config.Load(in)
	if err != nil {
		return config.Config{}, err
	}
	if r.From["data_dir"] == "default" {
		r.Config.DataDir = defaultDataDir
	}
	if r.From["run_dir"] == "default" {
		r.Config.RunDir = defaultRunDir
	}
	if r.From["kernel_dir"] == "default" {
		r.Config.KernelDir = filepath.Join(r.Config.DataDir, containerd.KernelDir)
	}
	return r.Config, nil
}

// place is where the microVM of a container is, by its bundle: known also to who
// clears away after a shim that was killed.
type place struct {
	id   string // of the microVM
	mark string // in its VMM's environment
	dir  string // of its VMM
}

// bundles are named by their container's id, so their paths are unique on a host.
func placeOf(cfg config.Config, bundle string) place {
	sum := sha256.Sum256([]byte(bundle))
	id := "c" + hex.EncodeToString(sum[:6])
	return place{id: id, mark: "SKEP_BUNDLE=" + bundle, dir: filepath.Join(cfg.RunDir, id)}
}

func logger(debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
