package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/debian"
)

// basePackages are in the host besides Debian's essential ones: its init, what
// skep and its tests call, QEMU as the second VMM, and what helps to look into a
// failure.
var basePackages = []string{
	"ca-certificates", "containerd", "containernetworking-plugins", "e2fsprogs", "iproute2", "kmod", "mount", "nftables", "procps",
	"qemu-system-x86", "runc", "strace", "systemd",
}

// baseVersion is part of the base's key: raise it when the way of making it changes.
const baseVersion = "2"

// kernelsIn is where the host has the store of guest kernels.
const kernelsIn = "/testbed/kernels"

// guestKernel returns the kernel that tests boot, fetched when it is not there.
// The host boots the same one.
func guestKernel(ctx context.Context) (kernel.Kernel, error) {
	dir := os.Getenv("SKEP_TEST_KERNELS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return kernel.Kernel{}, err
		}
		dir = filepath.Join(cache, "skep", "kernels")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return kernel.Kernel{}, err
	}
	k, err := kernel.Fetch(ctx, dir, func(step string) { say("%s", step) })
	if err == nil && k.Modules == "" {
		err = fmt.Errorf("the guest kernel %s has no modules: the host's KVM is one", k.Path)
	}
	return k, err
}

// base opens the disk with packages and kernel.
func base(ctx context.Context, k kernel.Kernel) (*os.File, error) {
	release, err := debian.Release()
	if err != nil {
		return nil, err
	}
	key := strings.Join(append([]string{baseVersion, release, k.Digest}, basePackages...), " ")
	return cachedDisk("base", key, func(w io.Writer) error {
		say("making the host's base from packages, once: %s", strings.Join(basePackages, " "))
		return debian.Bootstrap(ctx, debian.Root{
			Release: release, Variant: "essential", Packages: basePackages,
			Args: []string{"--customize-hook=" + kernelHook(k)},
		}, w)
	})
}

// kernelHook copies the kernel's directory of its store into the root, where
// the host's modprobe finds the modules, too.
func kernelHook(k kernel.Kernel) string {
	store := filepath.Dir(k.Path)
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	return fmt.Sprintf(`set -e; mkdir -p "$1"%[1]s "$1"/usr/lib/modules; cp -rL %[2]s "$1"%[1]s/; `+
		`ln -s %[1]s/%[3]s/modules/%[4]s "$1"/usr/lib/modules/%[4]s; chroot "$1" depmod %[4]s; rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale`,
		kernelsIn, quote(store), quote(filepath.Base(store)), quote(k.Release))
}
