package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

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
		var names []string
		for line := range strings.Lines(string(out)) {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			if !ok || !strings.HasPrefix(name, "linux-image-") {
				continue
			}
			names = append(names, name)
			// Ubuntu has most modules in a package of their own.
			modules := "linux-modules-" + strings.TrimPrefix(strings.TrimPrefix(name, "linux-image-"), "unsigned-")
			if exec.CommandContext(ctx, "apt-cache", "show", modules).Run() == nil {
				names = append(names, modules)
			}
		}
		if len(names) > 0 {
			return names, nil
		}
	}
	return nil, errors.New("apt knows no kernel package for virtual machines: run apt-get update, or set kernel and kernel_modules")
}

// unpack downloads packages into dir and unpacks them into dir/root.
func unpack(ctx context.Context, dir string, names []string) error {
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	// As root apt would drop to a user that may not write here, and warn.
	args := append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, names...)
	if err := run(ctx, dir, "apt-get", args...); err != nil {
		return fmt.Errorf("downloading the guest kernel: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := run(ctx, dir, "dpkg-deb", "-x", deb, root); err != nil {
			return fmt.Errorf("unpacking the guest kernel: %w", err)
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
		return fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, strings.TrimSpace(string(out)))
	}
	return nil
}

func isNotEmpty(err error) bool { return errors.Is(err, syscall.ENOTEMPTY) }
