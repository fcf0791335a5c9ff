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

// loadSettings reads the settings of shims, over which stands what is in containerd's
// environment.
func loadSettings() (config.Config, error) { return containerd.Host{}.Settings(os.Environ()) }

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
