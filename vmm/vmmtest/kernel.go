package vmmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// kernel is the guest kernel with the modules it needs, in load order.
type kernel struct {
	image   string
	modules []string
}

// drivers of the suite's guest, in load order, below the kernel's module directory.
var drivers = []string{
	"drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko", "drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko",
	"drivers/virtio/virtio_mmio.ko",
	"drivers/block/virtio_blk.ko",
	"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko",
}

// debianKernel downloads Debian's cloud kernel once and unpacks it into the
// user's cache; it is not installed.
func debianKernel(t testing.TB) kernel {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache directory for the guest kernel: set XDG_CACHE_HOME")
	}
	dir := filepath.Join(cache, "skep", "vmmtest-kernel")
	if _, err := os.Stat(dir); err != nil {
		download(t, dir)
	}
	image := glob(t, filepath.Join(dir, "boot/vmlinuz-*"))
	k := kernel{image: image}
	modules := glob(t, filepath.Join(dir, "lib/modules/*/kernel"))
	for _, d := range drivers {
		k.modules = append(k.modules, filepath.Join(modules, d))
	}
	return k
}

func download(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "kernel-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	script := `set -e
name=$(apt-cache depends --important linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
apt-get download -q "$name"
mkdir root
dpkg-deb -x ./*.deb root`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		skip := t.Skipf
		if want := strings.Split(os.Getenv(testenv.RequireEnv), ","); slices.Contains(want, "kernel") || slices.Contains(want, "all") {
			skip = t.Fatalf
		}
		skip("no guest kernel: on Debian, run apt-get update, and see that apt-get download linux-image-cloud-amd64 works: %v\n%s", err, out)
	}
	// Two packages' tests may have downloaded at once: the first one wins.
	if err := os.Rename(filepath.Join(tmp, "root"), dir); err != nil && !os.IsExist(err) && !strings.Contains(err.Error(), "not empty") {
		t.Fatal(err)
	}
}

func glob(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s matches %q, %v; want one file", pattern, found, err)
	}
	return found[0]
}
