// Package testenv lets tests say what they need of the host, and checks that
// they leave nothing behind on it. Every package's tests may use it; nothing
// else does.
package testenv

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// RequireEnv names the environment variable that turns skips into failures: a
// comma-separated list of needs, or "all".
const RequireEnv = "SKEP_REQUIRE"

// need is something that a test may want of its host.
type need struct {
	probe func() error
	cure  string // what to do to have it
}

var needs = map[string]need{
	"root":        {sync.OnceValue(probeRoot), "run the tests as root"},
	"uffd":        {sync.OnceValue(probeUserfaultfd), "run as root on a kernel with CONFIG_USERFAULTFD (in a container: allow the userfaultfd system call)"},
	"fuse":        {sync.OnceValue(probeFUSE), "run as root with /dev/fuse: modprobe fuse"},
	"netns":       {sync.OnceValue(probeNetNS), "run as root; in a container, with CAP_SYS_ADMIN and CAP_NET_ADMIN"},
	"tap":         {sync.OnceValue(probeTap), "run as root with /dev/net/tun: modprobe tun"},
	"nft":         {sync.OnceValue(probeNFT), "run as root on a kernel with nf_tables and NAT: modprobe nf_tables nft_masq nft_chain_nat"},
	"qemu":        {sync.OnceValue(probeQEMU), "apt-get install --no-install-recommends qemu-system-x86"},
	"kvm":         {sync.OnceValue(probeKVM), "run on hardware with virtualisation, or in a VM with nested virtualisation on"},
	"kernel":      {sync.OnceValue(probeKernel), "run `make setup` (or bin/skep setup), which fetches the guest kernel; " + KernelsEnv + " names another directory"},
	"firecracker": {sync.OnceValue(probeFirecracker), "put firecracker on the PATH, or its path into SKEP_FIRECRACKER"},
	"mmdebstrap":  {sync.OnceValue(probeCommand("mmdebstrap")), "apt-get install --no-install-recommends mmdebstrap"},
	"functions":   {sync.OnceValue(probeFunctions), "run with " + RequireEnv + "=functions: it downloads about 500 MB of packages once, and takes half an hour without KVM"},
	"cgroup":      {sync.OnceValue(probeCgroup), "run as root on a kernel with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1), or in the testbed, which has one: `go run ./testbed test`"},
	"runc":        {sync.OnceValue(probeCommand("runc")), "apt-get install --no-install-recommends runc"},
	"containerd":  {sync.OnceValue(probeContainerd), "apt-get install --no-install-recommends containerd; " + ContainerdEnv + " names a directory with the programs of another"},
	"systemd":     {sync.OnceValue(probeSystemd), "run as root on a host that systemd has started, or in the testbed: `go run ./testbed test`"},
	"mkfs":        {sync.OnceValue(probeCommand("mke2fs")), "apt-get install --no-install-recommends e2fsprogs"},
}

// Need skips the test when the host lacks one of these, and says how to have
// it: root, uffd, fuse, netns, tap, nft, qemu, kvm, kernel, firecracker, mmdebstrap,
// functions, cgroup, mkfs, runc, containerd, systemd. When RequireEnv names it, the test fails instead.
func Need(t testing.TB, what ...string) {
	t.Helper()
	for _, w := range what {
		n, ok := needs[w]
		if !ok {
			t.Fatalf("testenv: no such need as %q", w)
		}
		NeedThat(t, w, n.probe(), n.cure)
	}
}

// NeedThat is Need of something that a package probes itself: err says what is missing,
// nil that it is there.
func NeedThat(t testing.TB, what string, err error, cure string) {
	t.Helper()
	switch {
	case err == nil:
	case required(what):
		t.Fatalf("%s is required here (%s=%s) but missing: %v; %s", what, RequireEnv, os.Getenv(RequireEnv), err, cure)
	default:
		t.Skipf("needs %s: %v; to run this test: %s", what, err, cure)
	}
}

// Has reports whether the host has it, for tests that do more where it does.
func Has(what string) bool {
	n, ok := needs[what]
	return ok && n.probe() == nil
}

func required(what string) bool {
	list := strings.Split(os.Getenv(RequireEnv), ",")
	return slices.Contains(list, "all") || slices.Contains(list, what)
}

// Dir returns a directory for the test's files, removed at its end. Its path is
// short, so that a unix socket fits in it, and TMPDIR decides the file system.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skep-test-")
	if err != nil {
		t.Fatal(fmt.Errorf("making a directory for the test: %w", err))
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the test's directory: %v", err)
		}
	})
	return dir
}
