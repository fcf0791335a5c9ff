package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/firecracker"
	"github.com/skep-dev/skep/vmm/qemu"
)

func checkRoot(context.Context, Options) Check {
	const name = "root"
	if id := os.Geteuid(); id != 0 {
		return fail(name, fmt.Sprintf("running as user %d", id), "run as root: network namespaces, taps and other users' processes need it")
	}
	return ok(name, "running as root")
}

func checkKVM(ctx context.Context, _ Options) Check {
	const name = "hardware kvm"
	if err := vmm.HardwareKVM(ctx); err != nil {
		return warn(name, err.Error(), "use a machine with virtualisation for production; without it guests run under QEMU's software emulation, some ten times slower")
	}
	return ok(name, "the self-test guest ran at the hardware's speed")
}

func checkUserfaultfd(context.Context, Options) Check {
	const name = "userfaultfd"
	features, err := userfaultfd.Probe()
	if err != nil {
		return warn(name, err.Error(), "without it only the memory policy mmap works: run as root on a kernel with CONFIG_USERFAULTFD; in a container, allow the system call")
	}
	return ok(name, "opened one; features: "+features.String())
}

func checkTap(context.Context, Options) Check {
	const name = "tap"
	if err := network.Probe(); err != nil {
		return fail(name, err.Error(), "modprobe tun; run as root, in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN and /dev/net/tun")
	}
	return ok(name, "made one in a network namespace")
}

func checkNAT(context.Context, Options) Check {
	const name = "nftables"
	if err := network.ProbeNAT(); err != nil {
		return warn(name, err.Error(), "without it functions cannot have egress nat: modprobe nf_tables nft_chain_nat nft_masq")
	}
	return ok(name, "loaded the rules of egress nat in a network namespace")
}

func checkQEMU(ctx context.Context, opts Options) Check {
	const name = "qemu"
	info, err := qemu.New(qemu.Options{Binary: opts.QEMU, Accel: "tcg"}).Info(ctx)
	if err != nil {
		return fail(name, err.Error(), "apt-get install --no-install-recommends qemu-system-x86")
	}
	return ok(name, "version "+info.Version)
}

func checkFirecracker(ctx context.Context, opts Options) Check {
	const name = "firecracker"
	h, err := firecracker.Probe(ctx, firecracker.Options{Binary: opts.Firecracker})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return warn(name, "not found; with hardware KVM it is the better choice", "skep setup firecracker; or put a release's firecracker and jailer on the PATH")
	}
	if err != nil {
		return warn(name, err.Error(), "skep setup firecracker")
	}
	if h.Dynamic && opts.Confine {
		return warn(name, h.Path+" needs shared libraries, so it cannot be confined", "skep setup firecracker")
	}
	if h.Jailer == "" {
		return ok(name, "version "+h.Version+", confined by skep itself: no jailer of that version is beside it or on the PATH")
	}
	return ok(name, "version "+h.Version+", with its jailer")
}

func checkKernel(_ context.Context, opts Options) Check {
	const name = "guest kernel"
	var k kernel.Kernel
	var err error
	switch {
	case opts.Kernel != "":
		k, err = kernel.Load(opts.Kernel, opts.Modules)
	case opts.KernelDir != "":
		k, err = kernel.Default(opts.KernelDir)
	default:
		err = kernel.ErrNone
	}
	if err != nil {
		return fail(name, err.Error(), "skep setup")
	}
	what := k.Path
	if k.Release != "" {
		what = k.Release + " in " + filepath.Dir(k.Path)
	}
	return ok(name, what)
}

func checkCgroup(_ context.Context, opts Options) Check {
	const name = "cgroup v2"
	root := opts.CgroupRoot
	switch root {
	case "none":
		return ok(name, "turned off by the setting cgroup_root")
	case "", "auto":
		root = cgroup.Root()
	}
	const cure = "boot with systemd.unified_cgroup_hierarchy=1, or name a delegated directory in the setting cgroup_root"
	if root == "" {
		return warn(name, "no writable mount: machines run without limits on memory, processes and CPU", cure)
	}
	have, err := controllers(root)
	if err != nil {
		return warn(name, err.Error(), cure)
	}
	var lacking []string
	for _, c := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(have, c) {
			lacking = append(lacking, c)
		}
	}
	if len(lacking) > 0 {
		return warn(name, fmt.Sprintf("%s lacks %s: machines run without these limits", root, strings.Join(lacking, ", ")), cure)
	}
	return ok(name, root+" limits memory, processes and CPU")
}

// controllers of a cgroup, or of its nearest ancestor that is one.
func controllers(dir string) ([]string, error) {
	for at := dir; ; at = filepath.Dir(at) {
		list, err := os.ReadFile(filepath.Join(at, "cgroup.controllers"))
		if err == nil {
			return strings.Fields(string(list)), nil
		}
		if !errors.Is(err, os.ErrNotExist) || at == filepath.Dir(at) {
			return nil, fmt.Errorf("%s is not in a cgroup v2 file system", dir)
		}
	}
}

func checkMemory(context.Context, Options) Check {
	const name = "memory"
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	total, available := field(string(info), "MemTotal"), field(string(info), "MemAvailable")
	detail := fmt.Sprintf("%d of %d MiB available, %d CPUs", available, total, cpus())
	switch {
	case available < 384:
		return fail(name, detail, "a function of the default size needs 256 MiB and some for the VMM: free some memory")
	case available < 2048:
		return warn(name, detail, "this is enough for a few functions at once")
	}
	return ok(name, detail)
}

// field reads a line of /proc/meminfo, in MiB.
func field(info, name string) int {
	for line := range strings.Lines(info) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return kib / 1024
		}
	}
	return 0
}

func cpus() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 1
	}
	return set.Count()
}
