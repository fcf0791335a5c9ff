package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/skep-dev/skep/vmm"
)

// maxVCPUs is what Firecracker takes.
const maxVCPUs = 32

// Ids of the devices.
const (
	diskID    = "root"
	networkID = "eth0"
)

// cmdline is what every guest kernel is told. Firecracker's default forbids
// modules and has no serial port. A panic must end the machine: reboot at once,
// by the keyboard controller, which is Firecracker's way of ending. PCI is not
// there and takes time to find out.
const cmdline = "console=ttyS0 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"

// Boot starts a machine from its kernel; see vmm.VMM.
func (v *VMM) Boot(ctx context.Context, spec vmm.BootSpec) (vmm.Machine, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := vmm.Check(spec.Config, spec.Host, maxVCPUs); err != nil {
		return nil, err
	}
	if err := createMemory(spec.MemoryFile, spec.MemoryMiB, spec.Host); err != nil {
		return nil, err
	}
	m, err := bootMachine(ctx, host, spec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("booting: %w", err), removeIfThere(spec.MemoryFile))
	}
	v.log.Debug("booted", "vmm", "firecracker", "instance", spec.ID, "pid", m.PID())
	return m, nil
}

func bootMachine(ctx context.Context, host *Host, spec vmm.BootSpec) (*machine, error) {
	l := launch{host: host, config: spec.Config, on: spec.Host, entries: []entry{
		{name: kernelName, path: spec.Kernel},
		{name: memoryName, path: spec.MemoryFile, writable: true},
	}}
	if spec.Initramfs != "" {
		l.entries = append(l.entries, entry{name: initramfsName, path: spec.Initramfs})
	}
	if spec.RootDisk != "" {
		l.entries = append(l.entries, entry{name: diskName, path: spec.RootDisk})
	}
	m, err := l.run(ctx)
	if err != nil {
		return nil, err
	}
	m.memoryFile, m.life.Booted = spec.MemoryFile, true
	began := time.Now()
	if err := m.configure(ctx, spec); err != nil {
		return nil, errors.Join(m.explain(err), m.Kill())
	}
	m.life.Paused = false
	m.timings.Load = time.Since(began)
	return m, nil
}

// configure describes the machine, and starts it.
func (m *machine) configure(ctx context.Context, spec vmm.BootSpec) error {
	boot := bootSource{Kernel: kernelName, Cmdline: cmdline}
	if spec.Initramfs != "" {
		boot.Initrd = initramfsName
	}
	if spec.Cmdline != "" {
		boot.Cmdline += " " + spec.Cmdline
	}
	if err := m.api.put(ctx, "/machine-config", machineConfig{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB}); err != nil {
		return err
	}
	if err := m.api.put(ctx, "/boot-source", boot); err != nil {
		return err
	}
	if spec.RootDisk != "" {
		if err := m.api.put(ctx, "/drives/"+diskID, drive{ID: diskID, Path: diskName, ReadOnly: true}); err != nil {
			return fmt.Errorf("attaching the root disk %s: %w", spec.RootDisk, err)
		}
	}
	if spec.Tap != "" {
		if err := m.api.put(ctx, "/network-interfaces/"+networkID, networkInterface{ID: networkID, Tap: spec.Tap, MAC: spec.MAC.String()}); err != nil {
			return fmt.Errorf("attaching the tap %s: %w", spec.Tap, err)
		}
	}
	if err := m.api.do(ctx, "PUT", "/actions", action{"InstanceStart"}, transfer(spec.MemoryMiB)); err != nil {
		return fmt.Errorf("starting the vCPUs: %w", err)
	}
	return nil
}

// createMemory makes the file into which a snapshot will write guest memory,
// all holes. Until then Firecracker has memory of its own.
func createMemory(path string, mib int, h vmm.Host) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("creating guest memory: %w", err)
	}
	err = f.Truncate(int64(mib) << 20)
	if err == nil && h.UID != 0 {
		err = f.Chown(h.UID, h.GID)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("creating guest memory: %w", err), os.Remove(path))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
