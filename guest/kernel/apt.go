package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Fetch makes sure that a kernel is in the store dir: it downloads the
// distribution's package for virtual machines with apt-get and imports it. step
// is told what is being done; nil is allowed. When a kernel is there, nothing
// is done.
func Fetch(ctx context.Context, dir string, step func(string)) (k Kernel, err error) {
	if k, err := Default(dir); !errors.Is(err, ErrNone) {
		return k, err
	}
	if step == nil {
		step = func(string) {}
	}
	tmp, err := os.MkdirTemp("", "skep-kernel-")
	if err != nil {
		return Kernel{}, fmt.Errorf("fetching a guest kernel: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	step("looking for the distribution's kernel package for virtual machines")
	names, err := packages(ctx)
	if err != nil {
		return Kernel{}, err
	}
	step("downloading " + strings.Join(names, " "))
	// As root apt would drop to a user that may not write here, and warn.
	args := append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, names...)
	if err := run(ctx, tmp, "apt-get", args...); err != nil {
		return Kernel{}, fmt.Errorf("downloading the guest kernel: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return Kernel{}, err
	}
	step("unpacking it")
	return Import(ctx, dir, ImportOptions{Packages: debs})
}

// packages names the packages that hold the distribution's kernel for virtual
// machines and its modules.
func packages(ctx context.Context) ([]string, error) {
	if _, err := exec.LookPath("apt-cache"); err != nil {
		return nil, errors.New("fetching a guest kernel needs apt (Debian or Ubuntu); elsewhere set kernel and kernel_modules")
	}
	for _, meta := range []string{"linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"} {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", meta).Output()
		if err != nil {
			continue
		}
		names := dependencies(string(out))
		if len(names) == 0 {
			continue
		}
		// Ubuntu has most modules in a package of their own.
		modules := "linux-modules-" + strings.TrimPrefix(strings.TrimPrefix(names[0], "linux-image-"), "unsigned-")
		if exec.CommandContext(ctx, "apt-cache", "show", modules).Run() == nil {
			names = append(names, modules)
		}
		return names, nil
	}
	return nil, errors.New("apt knows no kernel package for virtual machines: run apt-get update, or set kernel and kernel_modules")
}

// dependencies reads the first kernel package from what apt-cache depends says
// of a metapackage. Where there are alternatives ("|Depends:"), the first will do.
func dependencies(out string) []string {
	for line := range strings.Lines(out) {
		name, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") {
			return []string{name}
		}
	}
	return nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
