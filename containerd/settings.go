package containerd

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/config"
)

// SettingsFile has settings of shims, in the form of the daemon's.
const SettingsFile = "/etc/skep/containerd.toml"

// settingsFiles are what may be beside it: itself, credentials of the object store in the form of
// AWS's shared file, and the key that what is there is encrypted with.
var settingsFiles = []string{filepath.Base(SettingsFile), CredentialsFile, "store.key"}

// CredentialsFile is the name of the credentials.
const CredentialsFile = "credentials"

// defaultDataDir is what all shims of a host share, defaultRunDir what belongs to
// those that run.
const (
	defaultDataDir = "/var/lib/skep-containerd"
	defaultRunDir  = "/run/skep-containerd"
)

// Settings reads the settings of the host's shims: the file, and over it what stands in
// the environment as SKEP_…. Paths are those that shims see.
func (h Host) Settings(environ []string) (config.Config, error) {
	in := config.Input{Environ: environ, File: h.path(SettingsFile)}
	if _, err := os.Stat(in.File); err != nil {
		in.File = os.DevNull
	}
	r, err := config.Load(in)
	if err != nil {
		return config.Config{}, fmt.Errorf("settings of shims: %w", err)
	}
	if r.From["data_dir"] == "default" {
		r.Config.DataDir = defaultDataDir
	}
	if r.From["run_dir"] == "default" {
		r.Config.RunDir = defaultRunDir
	}
	if r.From["kernel_dir"] == "default" {
		r.Config.KernelDir = filepath.Join(r.Config.DataDir, KernelDir)
	}
	return r.Config, nil
}
