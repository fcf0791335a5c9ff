// Package firecracker runs microVMs on an unmodified Firecracker, on hosts
// whose hardware backs KVM. It is one of the two backends of package vmm.
//
// A restored machine's memory is a private mapping of the snapshot's file (its
// File backend) or empty and served from outside through a userfaultfd that
// Firecracker itself makes and hands over (its Uffd backend).
//
// A process opens all its files by name as an unprivileged user, in a root
// directory of its own. That directory is a tmpfs in a mount namespace which
// only the process is in: it holds bind mounts of just the files that the
// machine needs, under names that are the same for every machine, since the
// name of a disk is part of a snapshot. It needs no clean-up: the kernel takes
// it away with the process, after a crash of the daemon too. Where the official
// jailer is at hand, it does the rest of the confinement; else this package.
package firecracker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/skep-dev/skep/internal/memo"
	"github.com/skep-dev/skep/vmm"
)

// Options of a VMM. The zero value finds out everything.
type Options struct {
	Binary string       // path or name; "" looks for firecracker on the PATH
	Jailer string       // path or name; "" looks beside the binary and on the PATH; "none" does without
	Logger *slog.Logger // nil discards
	Memo   memo.Dir     // keeps what the binaries said of themselves
}

// VMM starts Firecracker machines.
type VMM struct {
	opts Options
	log  *slog.Logger

	mu    sync.Mutex
	probe *Host // guarded by mu; nil until a probe has succeeded
}

var _ vmm.VMM = (*VMM)(nil)

// New returns a VMM. It does nothing yet: the host is probed on first use.
func New(opts Options) *VMM {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &VMM{opts: opts, log: opts.Logger}
}

// hardware names the machine that boot.go describes. Its number changes with
// every change there that device state depends on.
const hardware = "mmio skep-1 cpu=host"

// overhead of a machine, as measured (docs/vmm.md). A jail has a tmpfs of at most
// 64 MiB, of which a copy of the binary and device state take some.
var overhead = vmm.Overhead{UsedMiB: 8, MostMiB: 128}

// Info probes the host on first use.
func (v *VMM) Info(ctx context.Context) (vmm.Info, error) {
	h, err := v.host(ctx)
	if err != nil {
		return vmm.Info{}, err
	}
	return vmm.Info{
		Name:    "firecracker",
		Version: h.Version,
		Line:    h.version.line(),
		Accel:   "kvm",
		Machine: fmt.Sprintf("%s state=%s", hardware, h.Snapshots),
		Path:    h.Path, Overhead: overhead,
	}, nil
}

// host is the cached probe. A failed one is repeated by the next call: what was
// missing may have been installed.
func (v *VMM) host(ctx context.Context) (*Host, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.probe != nil {
		return v.probe, nil
	}
	h, err := probe(ctx, v.opts)
	if err == nil {
		err = vmm.HardwareKVM(ctx)
	}
	if err != nil {
		return nil, err
	}
	v.log.Debug("probed", "vmm", "firecracker", "path", h.Path, "version", h.Version, "jailer", h.Jailer)
	v.probe = &h
	return v.probe, nil
}
