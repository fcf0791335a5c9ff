package shim

import (
	"os"
	"strings"
	"testing"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/vmm/choose"
)

// What documentation and `skep containerd install` say of where things are.
func TestSettings(t *testing.T) {
	if _, err := os.Stat(containerd.SettingsFile); err == nil {
		t.Skipf("the defaults are not read where there is a %s: move it away", containerd.SettingsFile)
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "SKEP_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	cfg, err := loadSettings()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DataDir != "/var/lib/skep-containerd" || cfg.KernelDir != "/var/lib/skep-containerd/kernels" || choose.FirecrackerDir(cfg) != "/var/lib/skep-containerd/firecracker" {
		t.Errorf("data at %s, kernels at %s, Firecracker at %s", cfg.DataDir, cfg.KernelDir, choose.FirecrackerDir(cfg))
	}
	t.Setenv("SKEP_VMM", "firecracker")
	if cfg, err = loadSettings(); err != nil || cfg.VMM != "firecracker" {
		t.Errorf("chosen by containerd's environment is %q, %v", cfg.VMM, err)
	}
}
