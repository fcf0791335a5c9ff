package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

// Names in the run directory.
const (
	apiName    = "api.sock"
	faultsName = "faults.sock"
	logName    = "log"
	outName    = "state.new"
)

// inside is the path by which the process knows a file of its run directory.
func inside(name string) string { return runName + "/" + name }

// maxFiles is the limit that Firecracker is made for: it sizes a table to it,
// and growing that late costs some 50 ms.
const maxFiles = 2048

// launch is a process to be started.
type launch struct {
	host    *Host
	config  vmm.Config
	on      vmm.Host
	entries []entry
	// attached says that memory will be handed over.
	attached bool
}

// run starts the process and waits until its API answers. On an error nothing
// is left.
func (l *launch) run(ctx context.Context) (*machine, error) {
	began := time.Now()
	m, err := l.spawn()
	if err != nil {
		return nil, fmt.Errorf("starting Firecracker: %w", err)
	}
	if err := m.awaitAPI(ctx); err != nil {
		err = fmt.Errorf("starting Firecracker: %w", m.explain(err))
		return nil, errors.Join(err, m.Kill())
	}
	m.timings.Spawn = time.Since(began)
	return m, nil
}

// spawn starts the process.
func (l *launch) spawn() (_ *machine, err error) {
	m := &machine{
		jail:    &jail{host: l.on, binary: l.host.Path, jailer: l.host.Jailer, entries: l.entries, attached: l.attached},
		config:  l.config,
		logDone: make(chan struct{}),
		life:    vmm.Life{Paused: true},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	if m.jail.confined() && l.host.Dynamic {
		return nil, fmt.Errorf("%s needs shared libraries, and a jail has none: use the static binary of the official release (`skep setup firecracker`), or set confine_user to off", l.host.Path)
	}
	if err := m.jail.make(); err != nil {
		return nil, fmt.Errorf("preparing its directory: %w", err)
	}
	if m.console, err = process.OpenConsole(l.on); err != nil {
		return nil, err
	}
	if l.on.Tap != "" && m.jail.confined() {
		if err := process.OwnTap(l.on.NetNS, l.on.Tap, l.on.UID, l.on.GID); err != nil {
			return nil, err
		}
	}
	if m.proc, err = process.Start(l.spec(m)); err != nil {
		return nil, err
	}
	m.api = newClient(m.dial)
	go m.copyWords()
	return m, nil
}

// spec is the process, confined by the jailer, or by ourselves, or not.
func (l *launch) spec(m *machine) process.Spec {
	s := process.Spec{
		Path: l.host.Path, Name: binary, Host: l.on, Stdout: m.console, MaxFiles: maxFiles,
		MemoryMiB: l.config.MemoryMiB, VCPUs: l.config.VCPUs,
		Args: []string{"--api-sock", inside(apiName), "--log-path", inside(logName), "--level", "Warning"},
	}
	id := []string{"--id", l.on.ID} // the jailer passes it on
	switch {
	case !m.jail.confined():
		s.Args = append(id, s.Args...)
	case m.jail.jailer == "":
		s.Path, s.AsUser, s.Prepare = "/"+binary, true, m.jail.mount
		s.Args = append(id, s.Args...)
	default:
		s.Prepare, s.Path = m.jail.mount, m.jail.jailer
		s.Args = append(append(id, "--exec-file", l.host.Path, "--chroot-base-dir", m.jail.base(),
			"--uid", strconv.Itoa(l.on.UID), "--gid", strconv.Itoa(l.on.GID),
			"--resource-limit", fmt.Sprintf("no-file=%d", maxFiles),
			"--resource-limit", fmt.Sprintf("fsize=%d", process.FileLimit(l.config.MemoryMiB)), "--"), s.Args...)
	}
	// The jailer wipes the environment. What stands behind "--" is ignored, and
	// tells whose process it is all the same.
	s.Args = append(append(s.Args, "--"), l.on.Env...)
	return s
}

// dial connects to the API: over the connection that awaitAPI made, or anew.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	if conn := m.first.Swap(nil); conn != nil {
		return *conn, nil
	}
	return m.connect(ctx)
}

// connect waits until the process has made its socket.
func (m *machine) connect(ctx context.Context) (net.Conn, error) {
	for {
		conn, err := process.DialForeign(ctx, m.jail.dir, apiName, m.PID())
		if err == nil || errors.Is(err, process.ErrForeign) {
			return conn, err
		}
		select {
		case <-m.proc.Done():
			return nil, errEnded
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// awaitAPI returns when the process listens, with a connection for the first
// request.
func (m *machine) awaitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ordinary, errTooSlow)
	defer cancel()
	conn, err := m.connect(ctx)
	if err == nil {
		m.first.Store(&conn)
	}
	return err
}
