package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/skep-dev/skep/vmm"
)

// maxVCPUs is what the machine type q35 takes without an interrupt remapper.
const maxVCPUs = 255

// Boot starts a machine from its kernel; see vmm.VMM.
func (v *VMM) Boot(ctx context.Context, spec vmm.BootSpec) (vmm.Machine, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := vmm.Check(spec.Config, spec.Host, maxVCPUs); err != nil {
		return nil, err
	}
	for _, path := range []string{spec.Kernel, spec.Initramfs} {
		if _, err := os.Stat(path); path != "" && err != nil {
			return nil, fmt.Errorf("booting: %w", err)
		}
	}
	if err := createMemory(spec.MemoryFile, spec.MemoryMiB); err != nil {
		return nil, err
	}
	l := launch{host: host, config: spec.Config, on: spec.Host, ram: ram{file: spec.MemoryFile}, args: bootArgs(spec.Config)}
	m, _, err := l.run(ctx)
	if err != nil {
		return nil, errors.Join(err, os.Remove(spec.MemoryFile))
	}
	m.memoryFile, m.life.Booted = spec.MemoryFile, true
	began := time.Now()
	if err := m.Resume(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the vCPUs: %w", err), m.Kill())
	}
	m.timings.Load = time.Since(began)
	v.log.Debug("booted", "vmm", "qemu", "instance", spec.ID, "pid", m.PID())
	return m, nil
}

// createMemory makes guest memory: a file of holes, which QEMU maps shared.
func createMemory(path string, mib int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("creating guest memory: %w", err)
	}
	err = f.Truncate(int64(mib) << 20)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("creating guest memory: %w", err), os.Remove(path))
	}
	return nil
}
