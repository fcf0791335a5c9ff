// Package qemu runs microVMs on an unmodified QEMU, with KVM where the hardware
// gives it and in software (TCG) everywhere else: the same real machines on
// every Linux host. It is one of the two backends of package vmm.
//
// Guest memory is a file that QEMU maps shared, so a snapshot is the device
// state, some hundred KiB, plus that file as it is. A restored machine maps the
// file privately, or gets empty memory and a userfaultfd whose faults are
// served from outside. QEMU offers no such descriptor, so it is made in QEMU's
// address space as the process starts (see package userfaultfd).
//
// QEMU opens its files as root and then gives up everything: it changes to an
// unprivileged user and an empty root directory and installs its seccomp
// filter before the guest's first instruction.
package qemu

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
	Binary string       // path or name; "" looks for qemu-system-x86_64
	Accel  string       // "kvm" or "tcg"; "" is kvm where hardware backs it, else tcg
	Logger *slog.Logger // nil discards
	Memo   memo.Dir     // keeps what the binary said of itself
}

// VMM starts QEMU machines.
type VMM struct {
	opts Options
	log  *slog.Logger

	mu    sync.Mutex
	probe *probed // guarded by mu; nil until a probe has succeeded
}

var _ vmm.VMM = (*VMM)(nil)

// New returns a VMM. It does nothing yet: the host is probed on first use.
func New(opts Options) *VMM {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &VMM{opts: opts, log: opts.Logger}
}

// probed is what is known of the binary and the host.
type probed struct {
	path    string
	version version
	accel   string
	sandbox bool // the binary can install a seccomp filter
}

// hardware names the machine that args.go describes. Its number changes with
// every change there that device state depends on.
const hardware = "q35 skep-3"

// overhead of a machine, as measured (docs/vmm.md). Under TCG most of it is the
// cache of translated code, which a guest that does ever new things fills.
func overhead(accel string) vmm.Overhead {
	if accel == "tcg" {
		return vmm.Overhead{UsedMiB: 40, MostMiB: translationMiB + 128}
	}
	return vmm.Overhead{UsedMiB: 24, MostMiB: 128}
}

// Info probes the host on first use.
func (v *VMM) Info(ctx context.Context) (vmm.Info, error) {
	p, err := v.host(ctx)
	if err != nil {
		return vmm.Info{}, err
	}
	return vmm.Info{
		Name:    "qemu",
		Version: p.version.String(),
		Accel:   p.accel,
		Machine: fmt.Sprintf("%s cpu=%s", hardware, cpuModel(p.accel)),
		Path:    p.path, Overhead: overhead(p.accel),
	}, nil
}

// host is the cached probe. A failed one is repeated by the next call: what was
// missing may have been installed.
func (v *VMM) host(ctx context.Context) (*probed, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.probe != nil {
		return v.probe, nil
	}
	p, err := probe(ctx, v.opts)
	if err != nil {
		return nil, err
	}
	v.log.Debug("probed", "vmm", "qemu", "path", p.path, "version", p.version.String(), "accel", p.accel, "sandbox", p.sandbox)
	v.probe = p
	return p, nil
}
