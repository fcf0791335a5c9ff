// Package choose says by the settings which virtual machine monitor and which guest
// kernel a host's microVMs have. The programs call it when they start.
package choose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest/agent"
	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/memo"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/firecracker"
	"github.com/skep-dev/skep/vmm/qemu"
)

// VMM chooses the virtual machine monitor. By itself it takes Firecracker
// where that is there and the hardware backs KVM, and else QEMU.
func VMM(ctx context.Context, cfg config.Config, log *slog.Logger) (vmm.VMM, error) {
	if cfg.VMM == "qemu" {
		return newQEMU(cfg, log), nil
	}
	v, err := newFirecracker(ctx, cfg, log)
	switch {
	case err == nil:
		return v, nil
	case cfg.VMM == "firecracker":
		return nil, fmt.Errorf("vmm is firecracker: %w", err)
	}
	log.Debug("using QEMU", "reason", err)
	return newQEMU(cfg, log), nil
}

func newQEMU(cfg config.Config, log *slog.Logger) vmm.VMM {
	accel := cfg.Accel
	if accel == "auto" {
		accel = ""
	}
	return qemu.New(qemu.Options{Binary: cfg.QEMU, Accel: accel, Logger: log, Memo: remembered(cfg)})
}

// newFirecracker returns a Firecracker that was tried, or why there is none.
func newFirecracker(ctx context.Context, cfg config.Config, log *slog.Logger) (vmm.VMM, error) {
	if cfg.Accel == "tcg" {
		return nil, errors.New("accel is tcg, software emulation, which Firecracker has not: use vmm qemu")
	}
	opts := firecracker.Options{Binary: Firecracker(cfg), Logger: log, Memo: remembered(cfg)}
	h, err := firecracker.Probe(ctx, opts)
	if err != nil {
		return nil, err
	}
	if h.Dynamic && cfg.ConfineUser {
		return nil, fmt.Errorf("%s needs shared libraries, so it cannot be confined: use an official release (`skep setup firecracker`), or set confine_user to off", h.Path)
	}
	v := firecracker.New(opts)
	_, err = v.Info(ctx)
	return v, err
}

// Firecracker returns the binary that the setting names, or the one that
// `skep setup firecracker` has put where skep keeps such things.
func Firecracker(cfg config.Config) string {
	if path := firecracker.Find(cfg.FirecrackerPath, FirecrackerDir(cfg)); path != "" {
		return path
	}
	return cfg.FirecrackerPath
}

// FirecrackerDir is beside the guest kernels: both are fetched.
func FirecrackerDir(cfg config.Config) string {
	return filepath.Join(filepath.Dir(cfg.KernelDir), "firecracker")
}

// remembered is where what is found out about the host's programs and kernels is
// kept for the next process.
func remembered(cfg config.Config) memo.Dir { return memo.Dir(filepath.Join(cfg.DataDir, "memo")) }

// Guest finds the guest kernel that the settings name, or the newest there is, and
// makes the initramfs for it in dir.
func Guest(cfg config.Config, dir string) (kernel.Kernel, initramfs.Initramfs, error) {
	program, err := initramfs.FindAgent()
	if err != nil {
		return kernel.Kernel{}, initramfs.Initramfs{}, fmt.Errorf("finding the guest's agent: %w", err)
	}
	question := fmt.Sprintf("guest of kernel %q, modules %q, or the newest in %q, with agent %s, %q, in %q", cfg.Kernel, cfg.Modules, cfg.KernelDir, agent.Version, program, dir)
	type guest struct {
		Kernel    kernel.Kernel
		Initramfs initramfs.Initramfs
	}
	g, err := memo.Ask(remembered(cfg), question, func(read func(string)) (g guest, err error) {
		if g.Kernel, g.Initramfs, err = makeGuest(cfg, program, dir); err != nil {
			return g, err
		}
		for _, f := range append(g.Initramfs.Sources, cfg.KernelDir, g.Kernel.Path, filepath.Join(filepath.Dir(g.Kernel.Path), "kernel.json"), g.Kernel.Modules, g.Initramfs.Path) {
			read(f)
		}
		return g, nil
	})
	return g.Kernel, g.Initramfs, err
}

func makeGuest(cfg config.Config, program, dir string) (k kernel.Kernel, i initramfs.Initramfs, err error) {
	if cfg.Kernel != "" {
		k, err = kernel.Load(cfg.Kernel, cfg.Modules)
	} else {
		k, err = kernel.Default(cfg.KernelDir)
	}
	if err != nil {
		return k, i, err
	}
	i, err = initramfs.Build(dir, program, k)
	return k, i, err
}
