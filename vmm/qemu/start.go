package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

// launch is a process to be started: what boot and restore differ in.
type launch struct {
	host   *probed
	config vmm.Config
	on     vmm.Host
	ram    ram
	args   []string  // in addition to every machine's
	state  string    // file of device state; "" for a boot
	more   []command // sent together with the handshake
	start  func(*exec.Cmd, func() error) error
}

// handshake opens the control channel for commands. The capabilities are those
// that snapshots need: events instead of polling, and shared memory left out.
var handshake = []command{
	{Execute: "qmp_capabilities"},
	{Execute: "migrate-set-capabilities", Arguments: map[string]any{"capabilities": []map[string]any{
		{"capability": "events", "state": true},
		{"capability": "x-ignore-shared", "state": true},
	}}},
}

// emptyRoot is the root directory of a confined process.
func emptyRoot(h vmm.Host) string { return filepath.Join(h.Dir, "root") }

// removeRoot takes that directory away again; it is empty.
func removeRoot(h vmm.Host) error {
	if err := os.Remove(emptyRoot(h)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// run starts the process and waits until its control channel answers. It
// returns the machine and the answers to l.more. On an error nothing is left.
func (l *launch) run(ctx context.Context) (*machine, []json.RawMessage, error) {
	began := time.Now()
	m, err := l.spawn()
	if err != nil {
		return nil, nil, err
	}
	commands := append(append([]command{}, handshake...), l.more...)
	answers, err := m.qmp.do(ctx, commands...)
	if err != nil {
		err = fmt.Errorf("starting QEMU: %w", m.explain(err))
		return nil, nil, errors.Join(err, m.Kill())
	}
	m.timings.Spawn = time.Since(began)
	return m, answers[len(handshake):], nil
}

// The descriptors by which the process knows what it inherits.
const (
	fdQMP = 3 + iota
	fdConsole
	fdTap
	fdState
)

// inherited are the files of those descriptors; nil where there is none. This
// process closes its own when the other has started, or could not be.
type inherited [4]*os.File

func (in *inherited) set(fd int, f *os.File) { in[fd-fdQMP] = f }

func (in *inherited) close() {
	for _, f := range in {
		if f != nil {
			_ = f.Close()
		}
	}
}

// spawn starts the process.
func (l *launch) spawn() (m *machine, err error) {
	var in inherited
	defer in.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, removeRoot(l.on))
		}
	}()
	if err := l.open(&in); err != nil {
		return nil, err
	}
	m = &machine{consoleDone: make(chan struct{}), migration: make(chan string, 32), config: l.config, host: l.on, life: vmm.Life{Paused: true}}
	log, err := process.OpenConsole(l.on)
	if err != nil {
		return nil, err
	}
	console, far, err := socketPair("console")
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	in.set(fdConsole, far)
	m.console = console
	if m.qmp, far, err = newClient(m.onEvent); err != nil {
		return nil, errors.Join(err, log.Close(), console.Close())
	}
	in.set(fdQMP, far)
	m.proc, err = process.Start(process.Spec{
		Path:      l.host.path,
		Args:      append(machineArgs(l.host, l.config, l.on, l.ram), l.args...),
		Files:     in[:],
		Host:      l.on,
		Start:     l.start,
		MemoryMiB: l.config.MemoryMiB,
		VCPUs:     l.config.VCPUs,
	})
	if err != nil {
		m.qmp.close()
		return nil, errors.Join(err, log.Close(), console.Close())
	}
	go m.copyConsole(log)
	return m, nil
}

// open opens what the process gets from the host.
func (l *launch) open(in *inherited) error {
	if l.on.UID != 0 {
		if err := os.Mkdir(emptyRoot(l.on), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making an empty root directory: %w", err)
		}
	}
	if l.state != "" {
		f, err := os.Open(l.state)
		if err != nil {
			return fmt.Errorf("opening device state: %w", err)
		}
		in.set(fdState, f)
	}
	if l.on.Tap != "" {
		f, err := process.OpenTap(l.on.NetNS, l.on.Tap)
		if err != nil {
			return err
		}
		in.set(fdTap, f)
	}
	return nil
}
