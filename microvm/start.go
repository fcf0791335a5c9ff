package microvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// StartError is why a microVM did not start.
type StartError struct {
	Err error
	// LastLines are those that the server wrote; without any, those of the guest's
	// kernel and agent.
	LastLines []string
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// BootSpec is a microVM that starts from its kernel.
type BootSpec struct {
	Spec
	// MemoryDir is a directory of its own for the file of the guest's memory, on
	// the file system of the snapshot that it may become.
	MemoryDir string
	// Start is what to run there, its instance, time and entropy filled in. Nil leaves
	// the guest with nothing but its agent: it is to become a snapshot whose clones
	// are each started with something of their own (VM.Start).
	Start *guest.Start
}

// RestoreSpec is a microVM that starts from a snapshot.
type RestoreSpec struct {
	Spec
	State, Memory string // the snapshot's files
	// Session is the snapshot's memory, opened. The microVM closes it, also when its
	// start fails.
	Session memory.Session
	// Shell is a process that was started ahead for this Spec and State, now the
	// microVM's; nil for none. It cannot be used with a Session that is mapped.
	// An Awake is one whose guest needs not be woken any more.
	Shell vmm.Shell
	// Ahead serves the memory of a Shell that has loaded device state; nil: none does.
	Ahead *memory.Ahead
	// Held leaves what ran in the guest standing still, and the guest without the
	// message that makes it another, until VM.Clone.
	Held bool
}

// Boot starts a microVM from its kernel and returns it when its server is ready.
// Errors are *StartErrors; nothing is left then.
func (s *Starter) Boot(ctx context.Context, spec BootSpec) (*VM, error) {
	v := s.newVM(spec.Spec)
	ctx, span := tracing.Start(ctx, "boot microVM", tracing.Instance.String(spec.ID))
	err := s.boot(ctx, v, spec)
	tracing.End(span, err)
	if err != nil {
		return nil, v.failed(err)
	}
	return v, nil
}

// Restore starts a microVM from a snapshot, and returns it when the guest knows
// that it is a clone, or, held, when its agent has been greeted. Errors are *StartErrors; nothing is left then.
func (s *Starter) Restore(ctx context.Context, spec RestoreSpec) (*VM, error) {
	v := s.newVM(spec.Spec)
	ctx, span := tracing.Start(ctx, "restore microVM", tracing.Instance.String(spec.ID))
	err := s.restore(ctx, v, spec)
	tracing.End(span, err)
	if err != nil {
		return nil, v.failed(err)
	}
	return v, nil
}

// SnapshotsFault says that it is the snapshot for which a restore, or the microVM
// later, failed: a VMM that refuses its state, memory that cannot be read. A slot, a
// directory, a limit of time, the guest or a hook say nothing of it, and to hash all
// of its memory again would only add to the load that may be behind them.
func SnapshotsFault(err error) bool {
	return errors.Is(err, vmm.ErrState) || errors.Is(err, memory.ErrRead)
}

func (s *Starter) newVM(spec Spec) *VM { return &VM{spec: spec, log: s.Log} }

func (v *VM) failed(err error) error {
	lines := v.tail.lines()
	if len(lines) == 0 {
		lines = lastConsole(v.spec.Host.Dir)
	}
	v.Close()
	return &StartError{Err: err, LastLines: lines}
}

func (s *Starter) boot(ctx context.Context, v *VM, spec BootSpec) error {
	if err := hasSpace(spec.MemoryDir, int64(spec.Machine.MemoryMiB)<<20); err != nil {
		return err
	}
	file := filepath.Join(spec.MemoryDir, "memory")
	spawned := time.Now()
	m, err := s.VMM.Boot(ctx, vmm.BootSpec{Config: spec.Machine, Host: spec.Host, MemoryFile: file})
	if err != nil {
		return fmt.Errorf("booting: %w", err)
	}
	v.own(m)
	v.phases.Spawn = m.Timings().Spawn
	v.part(ctx, "spawn", spawned, v.phases.Spawn)
	ctx, stop := v.guard(ctx)
	defer stop()
	began := time.Now()
	conn, err := v.dialUntil(ctx, guest.AgentPort)
	if err != nil {
		return fmt.Errorf("waiting for the guest's agent: %w", err)
	}
	if err := s.greet(ctx, v, conn, nil); err != nil {
		return err
	}
	v.phases.Boot = m.Timings().Load + time.Since(began)
	v.part(ctx, "boot", spawned.Add(v.phases.Spawn), v.phases.Boot)
	if spec.Start != nil {
		began = time.Now()
		if err := v.start(ctx, *spec.Start); err != nil {
			return err
		}
		v.phases.Init = time.Since(began)
		v.part(ctx, "init", began, v.phases.Init)
	}
	v.connect(nil)
	return nil
}

// Start tells a guest that was bare when its snapshot was made what to run, and
// returns when that is ready.
func (v *VM) Start(ctx context.Context, start guest.Start) error {
	ctx, stop := v.guard(ctx)
	defer stop()
	return v.start(ctx, start)
}

func (v *VM) start(ctx context.Context, start guest.Start) error {
	start.Instance, start.UnixNano, start.Entropy = v.spec.ID, time.Now().UnixNano(), entropy()
	if err := v.agent.Start(ctx, start); err != nil {
		return fmt.Errorf("starting the function's server: %w", cause.Because(ctx, err))
	}
	if err := v.agent.Ready(ctx); err != nil {
		return fmt.Errorf("waiting for the function to be ready: %w", cause.Because(ctx, err))
	}
	return nil
}

// hasSpace refuses a boot whose guest memory may not fit. The file is sparse; a
// guest that touches a page for which there is no block kills its VMM with a
// SIGBUS, which tells nobody why.
func hasSpace(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("no space for guest memory: the file system of %s has %d MiB free, the machine may need %d MiB; free some, or give the function less memory: %w",
			dir, free>>20, need>>20, unix.ENOSPC)
	}
	return nil
}

func (s *Starter) restore(ctx context.Context, v *VM, spec RestoreSpec) error {
	v.setSession(spec.Session)
	v.onClose(func() { v.setSession(nil); spec.Session.Close() })
	// What is read holds buffers, which are better held by those who have a place to
	// run at, as this one does.
	spec.Session.Prefetch()
	guarded, stop := ctx, func() {}
	if !spec.Ahead.Attached() {
		// Loading device state touches memory, which may turn out to be unreadable. What has
		// been loaded ahead waits for nothing, and not for a goroutine to end either, which
		// those that read and install may keep from it.
		guarded, stop = v.guard(ctx)
	}
	spawned := time.Now()
	m, err := s.restoreMachine(guarded, spec)
	if err != nil {
		err = cause.Because(guarded, err) // before stop, which ends it
	}
	stop()
	if err != nil {
		return err
	}
	v.own(m)
	v.phases.Spawn, v.phases.Load = m.Timings().Spawn, m.Timings().Load
	if spec.Ahead.Attached() {
		v.phases.Spawn, v.phases.Load = time.Since(spawned), 0 // what it took is over
	}
	v.part(ctx, "spawn", spawned, v.phases.Spawn)
	v.part(ctx, "load", spawned.Add(v.phases.Spawn), v.phases.Load)
	return s.resume(ctx, v, spec)
}

func (s *Starter) restoreMachine(ctx context.Context, spec RestoreSpec) (vmm.Machine, error) {
	if spec.Shell != nil {
		attach := spec.Session.Attach
		if spec.Ahead != nil {
			attach = func(ctx context.Context, g userfaultfd.Guest) error { return spec.Ahead.HandOver(ctx, g, spec.Session) }
		}
		return spec.Shell.Restore(ctx, attach)
	}
	r := vmm.RestoreSpec{Config: spec.Machine, Host: spec.Host, State: spec.State, Memory: vmm.Memory{File: spec.Memory}}
	if !spec.Session.Mapped() {
		r.Memory.Attach = spec.Session.Attach
	}
	return s.VMM.Restore(ctx, r)
}

// resume takes a restored, paused machine to the first request. The connections
// to the agent and to the server are dialled before the vCPUs run: the SYNs wait
// in the tap's queue, and are the first thing that the guest sees.
func (s *Starter) resume(ctx context.Context, v *VM, spec RestoreSpec) error {
	ctx, stop := v.guard(ctx)
	defer stop()
	toAgent, toServer := v.dial(spec.Shell)
	began := time.Now()
	if err := v.session.Install(ctx); err != nil {
		return fmt.Errorf("installing guest memory: %w", cause.Because(ctx, err))
	}
	v.phases.Install = time.Since(began)
	v.part(ctx, "install", began, v.phases.Install)
	began = time.Now()
	if err := v.machine.Resume(ctx); err != nil {
		return fmt.Errorf("resuming: %w", cause.Because(ctx, err))
	}
	v.phases.Resume = time.Since(began)
	v.part(ctx, "resume", began, v.phases.Resume)
	began = time.Now()
	conn, err := toAgent.take(ctx)
	if err != nil {
		if conn, err = v.dialUntil(ctx, guest.AgentPort); err != nil {
			return fmt.Errorf("waiting for the guest's agent: %w", err)
		}
	}
	var clone *guest.Clone
	if !spec.Held {
		clone = v.cloneMessage(guest.Names{}, nil)
	}
	if err := s.greet(ctx, v, conn, clone); err != nil {
		return err
	}
	v.phases.Clone = time.Since(began)
	v.part(ctx, "clone", began, v.phases.Clone)
	v.connect(toServer)
	return nil
}

// dial begins to dial the agent and the server, unless the guest of a process that waited has been reached.
func (v *VM) dial(waited vmm.Shell) (toAgent, toServer *ahead) {
	if woken, ok := waited.(*Awake); ok {
		toAgent, toServer = woken.agent, woken.server
	} else {
		toAgent = dialAhead(v.spec.Dial, guest.AgentPort)
		if v.spec.Server.Port != 0 {
			toServer = dialAhead(v.spec.Dial, v.spec.Server.Port)
		}
	}
	v.onClose(toAgent.abandon)
	if toServer != nil {
		v.onClose(toServer.abandon)
	}
	return toAgent, toServer
}

// Clone tells a guest that was restored held that it is a clone, with these names and
// files (guest.Clone), and returns when it has taken that in: what ran in it runs again.
func (v *VM) Clone(ctx context.Context, n guest.Names, files []guest.File) error {
	ctx, stop := v.guard(ctx)
	defer stop()
	if err := v.agent.Clone(ctx, *v.cloneMessage(n, files)); err != nil {
		return fmt.Errorf("telling the guest that it is a clone: %w", cause.Because(ctx, err))
	}
	return nil
}

func (v *VM) cloneMessage(n guest.Names, files []guest.File) *guest.Clone {
	return &guest.Clone{Instance: v.spec.ID, UnixNano: time.Now().UnixNano(), Entropy: entropy(), Hook: v.spec.Server.CloneHook, Names: n, Files: files}
}

// part notes a phase of the start that is over.
func (v *VM) part(ctx context.Context, name string, began time.Time, took time.Duration) {
	tracing.Part(ctx, name, began, took)
	if v.spec.Phase != nil {
		v.spec.Phase(name, took)
	}
}

// own makes the machine the microVM's.
func (v *VM) own(m vmm.Machine) {
	v.machine = m
	v.onClose(func() {
		if err := m.Kill(); err != nil {
			v.log.Error("ending a VMM", "instance", v.spec.ID, "error", err)
		}
	})
}

// greet makes the agent at the other end of conn the microVM's, and it that clone,
// unless nil.
func (s *Starter) greet(ctx context.Context, v *VM, conn net.Conn, clone *guest.Clone) error {
	agent, err := s.Connect(ctx, conn, func(stream string, line []byte) {
		v.tail.add(line)
		if v.spec.Logs != nil {
			v.spec.Logs(stream, line)
		}
	}, clone)
	if err != nil {
		return fmt.Errorf("greeting the guest's agent: %w", cause.Because(ctx, err))
	}
	v.agent = agent
	v.onClose(func() { agent.Close() })
	return nil
}

// connect makes the microVM's connections; first is one that was dialled already.
func (v *VM) connect(first *ahead) {
	v.conns = v.newConnections(first)
	v.onClose(v.conns.close)
}

func entropy() []byte {
	b := make([]byte, 64)
	_, _ = rand.Read(b) // never fails
	return b
}
