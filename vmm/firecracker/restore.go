package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// Restore starts a machine from a snapshot; see vmm.VMM.
func (v *VMM) Restore(ctx context.Context, spec vmm.RestoreSpec) (vmm.Machine, error) {
	m, load, err := v.prepare(ctx, spec)
	if err == nil && spec.Memory.Attach == nil {
		err = m.load(ctx, load)
	} else if err == nil {
		err = m.loadAttached(ctx, load, spec.Memory.Attach)
	}
	if err != nil {
		if m != nil {
			err = errors.Join(err, m.Kill())
		}
		return nil, fmt.Errorf("restoring: %w", err)
	}
	v.log.Debug("restored", "vmm", "firecracker", "instance", spec.ID, "pid", m.PID())
	return m, nil
}

// prepare starts the process, up to where it waits for the request that loads
// the snapshot, which is returned too.
func (v *VMM) prepare(ctx context.Context, spec vmm.RestoreSpec) (*machine, snapshotLoad, error) {
	load := snapshotLoad{State: stateName, Memory: memoryBackend{Type: "Uffd", Path: inside(faultsName)}}
	host, err := v.host(ctx)
	if err != nil {
		return nil, load, err
	}
	if err := vmm.Check(spec.Config, spec.Host, maxVCPUs); err != nil {
		return nil, load, err
	}
	if _, err := os.Stat(spec.State); err != nil {
		return nil, load, fmt.Errorf("device state: %w", err)
	}
	l := launch{host: host, config: spec.Config, on: spec.Host, entries: []entry{{name: stateName, path: spec.State, copy: true}}}
	if spec.RootDisk != "" {
		l.entries = append(l.entries, entry{name: diskName, path: spec.RootDisk})
	}
	if spec.Memory.Attach == nil && spec.Memory.File != "" {
		if err := checkMemory(spec.Memory.File, spec.MemoryMiB); err != nil {
			return nil, load, err
		}
		l.entries = append(l.entries, entry{name: memoryName, path: spec.Memory.File})
		load.Memory = memoryBackend{Type: "File", Path: memoryName}
	}
	if spec.Tap != "" {
		load.Networks = []networkOverride{{ID: networkID, Tap: spec.Tap}}
	}
	l.attached = load.Memory.Type == "Uffd"
	m, err := l.run(ctx)
	return m, load, err
}

func checkMemory(file string, mib int) error {
	st, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	if want := int64(mib) << 20; st.Size() != want {
		return fmt.Errorf("guest memory %s is %d bytes long: the machine has %d", file, st.Size(), want)
	}
	return nil
}

func (m *machine) load(ctx context.Context, load snapshotLoad) error {
	began := time.Now()
	if err := m.api.do(ctx, "PUT", "/snapshot/load", load, transfer(m.config.MemoryMiB)); err != nil {
		err = fmt.Errorf("loading device state: %w", m.explain(err))
		var refusal *Error
		if errors.As(err, &refusal) {
			err = fmt.Errorf("%w: %w", vmm.ErrState, err)
		}
		return err
	}
	m.timings.Load = time.Since(began)
	return nil
}

// loadAttached loads the snapshot while guest memory is handed over: the
// process makes the userfaultfd, sends it, and has faults served from then on,
// all before it answers.
func (m *machine) loadAttached(ctx context.Context, load snapshotLoad, attach func(context.Context, userfaultfd.Guest) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := m.jail.mayFault(); err != nil {
		return fmt.Errorf("handing over guest memory: %w", err)
	}
	l := m.jail.faults
	attached := make(chan error, 1)
	go func() {
		err := m.attach(ctx, l, attach)
		if err != nil {
			cancel(err) // the load would wait for faults that nobody serves
		}
		attached <- err
	}()
	err := m.load(ctx, load)
	_ = l.Close() // so that nobody waits for a hand-over that will not come
	// What went wrong first is the reason.
	if aerr := <-attached; aerr != nil && (err == nil || !errors.Is(aerr, net.ErrClosed)) {
		return fmt.Errorf("handing over guest memory: %w", aerr)
	}
	return err
}

// attach takes over guest memory and passes it on.
func (m *machine) attach(ctx context.Context, l *net.UnixListener, attach func(context.Context, userfaultfd.Guest) error) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	g, err := userfaultfd.Receive(ctx, conn)
	if err != nil {
		return err
	}
	if err := m.checkGuest(g); err != nil {
		return errors.Join(err, g.FD.Close(), g.Gone.Close())
	}
	return attach(ctx, g)
}

// checkGuest makes sure that it is this machine's memory, all of it.
func (m *machine) checkGuest(g userfaultfd.Guest) error {
	if g.PID != m.PID() {
		return fmt.Errorf("process %d handed over its memory, instead of %d", g.PID, m.PID())
	}
	var size uint64
	for _, r := range g.Regions {
		size += r.Size
	}
	if want := uint64(m.config.MemoryMiB) << 20; size != want {
		return fmt.Errorf("the snapshot's guest memory is %d bytes large: the machine has %d", size, want)
	}
	return nil
}
