package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// StartError says why an instance did not become ready.
type StartError struct {
	Function string
	Instance string
	Err      error
	Logs     []string // the last lines that the function wrote; without any, that the guest's kernel did
}

func (e *StartError) Error() string {
	s := fmt.Sprintf("starting an instance of %s: %v", e.Function, e.Err)
	if len(e.Logs) > 0 {
		s += "; its last lines:\n  " + strings.Join(e.Logs, "\n  ")
	}
	return s
}

func (e *StartError) Unwrap() error { return e.Err }

// start makes the instance ready: from the newest usable snapshot, or else, if
// nothing else was asked for, by booting it. When it fails nothing is held.
func (n *Node) start(ctx context.Context, inst *instance) error {
	err := n.startEither(ctx, inst)
	if err == nil {
		return nil
	}
	logs := inst.tail.lines()
	if len(logs) == 0 {
		logs = lastConsole(inst.runDir())
	}
	inst.release()
	return &StartError{Function: inst.dep.fn.Name, Instance: inst.id, Err: because(ctx, err), Logs: logs}
}

func (n *Node) startEither(ctx context.Context, inst *instance) error {
	if inst.wanted == api.StartBoot {
		return n.bootInTime(ctx, inst)
	}
	snap, reason := n.usable(ctx, inst.dep)
	if snap == nil {
		if inst.wanted == api.StartRestore {
			return fmt.Errorf("%w: %w", ErrNoSnapshot, reason)
		}
		inst.noSnapshot = true
		n.log.Info("booting for want of a usable snapshot", "function", inst.pool.name, "instance", inst.id, "reason", reason)
		return n.bootInTime(ctx, inst)
	}
	id := snap.Manifest.ID
	err := n.restoreInTime(ctx, inst, snap)
	if err != nil && inst.home != "" && ctx.Err() == nil {
		// The process that was started ahead may be to blame; it may have died just now.
		n.log.Warn("restoring once more, with a process of its own", "function", inst.pool.name, "instance", inst.id, "error", err)
		inst.release()
		if snap, reason = n.usable(ctx, inst.dep); snap == nil {
			return fmt.Errorf("%w (after %w)", reason, err)
		}
		err = n.restoreInTime(ctx, inst, snap)
	}
	if err == nil {
		n.snaps.Restored(id, nil)
		return nil
	}
	inst.release()
	if ctx.Err() != nil {
		return err
	}
	if blamed(err) {
		// Every byte is looked at before its next use.
		n.snaps.Restored(id, err)
	}
	err = fmt.Errorf("restoring snapshot %s: %w", id, err)
	if inst.wanted == api.StartRestore {
		return err
	}
	n.log.Warn("booting since the restore failed", "function", inst.pool.name, "instance", inst.id, "snapshot", id, "error", err)
	if err2 := n.bootInTime(ctx, inst); err2 != nil {
		return fmt.Errorf("%w (after %w)", err2, err)
	}
	return nil
}

// blamed says that it is the snapshot for which a restore failed: a VMM that
// refuses its state, memory that cannot be read. A slot, a directory, a limit of
// time, the guest or a hook of the function's say nothing of it, and to hash
// all of its memory again would only add to the load that may be behind them.
func blamed(err error) bool { return errors.Is(err, vmm.ErrState) || errors.Is(err, memory.ErrRead) }

func (n *Node) bootInTime(ctx context.Context, inst *instance) error {
	limit := inst.dep.fn.ReadyTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit.D(), fmt.Errorf("not ready after %v (ready_timeout)", limit))
	defer cancel()
	if err := n.boot(ctx, inst); err != nil {
		return because(ctx, err)
	}
	return nil
}

// restoreInTime has a limit of its own, so that there is time left to boot. It
// grows with guest memory, all of which a policy may read: at 100 MiB/s; and with
// ready_timeout beyond its default, for hosts that are slower than that.
func (n *Node) restoreInTime(ctx context.Context, inst *instance, snap *snapshot.Snapshot) error {
	limit := max(30*time.Second, inst.dep.fn.ReadyTimeout.D()/2) + time.Duration(inst.dep.fn.MemoryMiB)*10*time.Millisecond
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %v", limit))
	defer cancel()
	if err := n.restore(ctx, inst, snap); err != nil {
		return because(ctx, err)
	}
	return nil
}

// guestSpeaks begins what the guest's kernel or the agent says on the console,
// or the agent's end. Before that the firmware speaks, which helps nobody.
var guestSpeaks = regexp.MustCompile(`\[ *[0-9]+\.[0-9]{6}\] |skep-agent: |panic: |fatal error: `)

// lastConsole returns the end of what the guest's kernel and agent said: all
// there is when the function has not come to write anything.
func lastConsole(dir string) []string {
	f, err := os.Open(filepath.Join(dir, "console.log"))
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 2048 // bytes
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	begin := guestSpeaks.FindIndex(b)
	if err != nil || begin == nil {
		return nil
	}
	b = b[begin[0]:]
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	return lines[max(0, len(lines)-tailLines):]
}

// usable returns the newest snapshot that the deployment can start from.
func (n *Node) usable(ctx context.Context, d *deployment) (*snapshot.Snapshot, error) {
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return nil, err
	}
	snap, reasons := n.snaps.Newest(ctx, n.want(d, info))
	if snap != nil {
		return snap, nil
	}
	if len(reasons) == 0 {
		return nil, errors.New("it has none")
	}
	return nil, errors.Join(reasons...)
}

// prepare takes the slot and makes the directories of a machine.
func (n *Node) prepare(ctx context.Context, inst *instance) (vmm.Config, error) {
	img, err := n.images.Get(inst.dep.image.Digest)
	if err != nil {
		return vmm.Config{}, fmt.Errorf("its root disk: %w", err)
	}
	began := time.Now()
	slot, err := n.net.Take(ctx, inst.dep.fn.Egress)
	if err != nil {
		return vmm.Config{}, fmt.Errorf("taking a network slot: %w", err)
	}
	inst.phases.Slot = time.Since(began)
	inst.slot = slot
	inst.onRelease(func() { n.net.Give(slot) })
	if err := n.makeDir(inst, inst.runDir()); err != nil {
		return vmm.Config{}, err
	}
	return n.machine(inst.dep, img.Disk), nil
}

// makeDir makes a private directory for the instance's process, removed with it.
func (n *Node) makeDir(inst *instance, dir string) error {
	if err := makePrivate(dir); err != nil {
		return err
	}
	inst.onRelease(func() { os.RemoveAll(dir) })
	return nil
}

// machineDir is the private directory of the machine of that id.
func (n *Node) machineDir(id string) string { return filepath.Join(n.cfg.RunDir, id) }

// makePrivate makes a directory of the daemon's for what belongs to one machine.
// The VMM's user may not write to it: what it writes is files that it was given.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the instance's directory: %w", err)
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

// boot starts the instance from its kernel.
func (n *Node) boot(ctx context.Context, inst *instance) error {
	inst.phases, inst.kind = api.Phases{}, api.StartBoot
	inst.snapshot, inst.home = "", ""
	shape, err := n.prepare(ctx, inst)
	if err != nil {
		return err
	}
	if err := n.makeDir(inst, inst.memDir()); err != nil {
		return err
	}
	if err := hasSpace(inst.memDir(), int64(inst.dep.fn.MemoryMiB)<<20); err != nil {
		return err
	}
	inst.memoryFile = filepath.Join(inst.memDir(), snapshot.PartMemory)
	m, err := n.deps.VMM.Boot(ctx, vmm.BootSpec{Config: shape, Host: n.host(inst.id, inst.slot), MemoryFile: inst.memoryFile})
	if err != nil {
		return fmt.Errorf("booting: %w", err)
	}
	n.own(inst, m)
	inst.phases.Spawn = m.Timings().Spawn
	ctx, stop := inst.guard(ctx)
	defer stop()
	began := time.Now()
	conn, err := n.dialUntil(ctx, inst, guest.AgentPort)
	if err != nil {
		return fmt.Errorf("waiting for the guest's agent: %w", err)
	}
	if err := n.greet(ctx, inst, conn); err != nil {
		return err
	}
	inst.phases.Boot = m.Timings().Load + time.Since(began)
	began = time.Now()
	s := inst.dep.start
	if inst.dep.fn.Egress == api.EgressNAT {
		s.Nameservers = n.cfg.Nameservers
	}
	s.Instance, s.UnixNano, s.Entropy = inst.id, time.Now().UnixNano(), entropy()
	if err := inst.agent.Start(ctx, s); err != nil {
		return fmt.Errorf("starting the function's server: %w", because(ctx, err))
	}
	if err := inst.agent.Ready(ctx); err != nil {
		return fmt.Errorf("waiting for the function to be ready: %w", because(ctx, err))
	}
	inst.phases.Init = time.Since(began)
	inst.transports = n.newTransports(inst, nil)
	n.ready(inst)
	return nil
}

// restore starts the instance from a snapshot, which it takes over.
func (n *Node) restore(ctx context.Context, inst *instance, snap *snapshot.Snapshot) error {
	inst.phases, inst.kind = api.Phases{}, api.StartRestore
	inst.snapshot, inst.home = snap.Manifest.ID, ""
	inst.onRelease(func() { snap.Release() })
	session, err := n.openMemory(ctx, inst, snap)
	if err != nil {
		return err
	}
	inst.setSession(session)
	inst.onRelease(func() { inst.setSession(nil); session.Close() })
	// Loading device state touches memory, which may turn out to be unreadable.
	guarded, stop := inst.guard(ctx)
	m, err := n.restoreMachine(guarded, inst, snap)
	stop()
	if err != nil {
		return because(guarded, err)
	}
	n.own(inst, m)
	inst.phases.Spawn, inst.phases.Load = m.Timings().Spawn, m.Timings().Load
	return n.resume(ctx, inst)
}

// restoreMachine takes a process that was started ahead for this, or starts one.
// The working set is fetched meanwhile, as soon as there is a slot: before that,
// it would keep buffers from those who have one.
func (n *Node) restoreMachine(ctx context.Context, inst *instance, snap *snapshot.Snapshot) (vmm.Machine, error) {
	if !inst.session.Mapped() {
		if sh := n.shells.take(inst.dep, snap.Manifest.ID); sh != nil {
			inst.session.Prefetch()
			return n.restoreShell(ctx, inst, sh)
		}
	}
	shape, err := n.prepare(ctx, inst)
	if err != nil {
		return nil, err
	}
	inst.session.Prefetch()
	spec := vmm.RestoreSpec{Config: shape, Host: n.host(inst.id, inst.slot), State: snap.StatePath(), Memory: vmm.Memory{File: snap.MemoryPath()}}
	if !inst.session.Mapped() {
		spec.Memory.Attach = inst.session.Attach
	}
	return n.deps.VMM.Restore(ctx, spec)
}

func (n *Node) openMemory(ctx context.Context, inst *instance, snap *snapshot.Snapshot) (memory.Session, error) {
	name := orDefault(inst.policy, orDefault(inst.dep.fn.MemoryPolicy, n.cfg.DefaultPolicy))
	policy, err := n.deps.Policy(name)
	if err != nil {
		return nil, fmt.Errorf("memory policy %q: %w", name, err)
	}
	// The session outlives the start: only the instance's end cancels it.
	session, err := policy.Open(inst.ctx, memorySource(snap))
	if err != nil {
		return nil, fmt.Errorf("memory policy %q: %w", name, err)
	}
	return session, ctx.Err()
}

func memorySource(snap *snapshot.Snapshot) memory.Source {
	return memory.Source{SnapshotID: snap.Manifest.ID, Path: snap.MemoryPath(), Size: snap.MemorySize(), Dir: snap.TraceDir()}
}

// resume takes a restored, paused machine to the first request. The connections
// to the agent and to the function are dialled before the vCPUs run: the SYNs
// wait in the tap's queue, and are the first thing that the guest sees.
func (n *Node) resume(ctx context.Context, inst *instance) error {
	ctx, stop := inst.guard(ctx)
	defer stop()
	toAgent := n.dialAhead(inst.ctx, inst, guest.AgentPort)
	toFunction := n.dialAhead(inst.ctx, inst, inst.dep.fn.Port)
	inst.onRelease(func() { toAgent.abandon(); toFunction.abandon() })
	began := time.Now()
	if err := inst.session.Install(ctx); err != nil {
		return fmt.Errorf("installing guest memory: %w", because(ctx, err))
	}
	inst.phases.Install = time.Since(began)
	began = time.Now()
	if err := inst.machine.Resume(ctx); err != nil {
		return fmt.Errorf("resuming: %w", because(ctx, err))
	}
	inst.phases.Resume = time.Since(began)
	began = time.Now()
	conn, err := toAgent.take(ctx)
	if err != nil {
		if conn, err = n.dialUntil(ctx, inst, guest.AgentPort); err != nil {
			return fmt.Errorf("waiting for the guest's agent: %w", err)
		}
	}
	if err := n.greet(ctx, inst, conn); err != nil {
		return err
	}
	c := guest.Clone{Instance: inst.id, UnixNano: time.Now().UnixNano(), Entropy: entropy(), Hook: inst.dep.fn.CloneHook}
	if err := inst.agent.Clone(ctx, c); err != nil {
		return fmt.Errorf("telling the guest that it is a clone: %w", because(ctx, err))
	}
	inst.phases.Clone = time.Since(began)
	inst.transports = n.newTransports(inst, toFunction)
	n.ready(inst)
	return nil
}

// own makes the machine the instance's.
func (n *Node) own(inst *instance, m vmm.Machine) {
	inst.machine = m
	inst.onRelease(func() {
		inst.machine = nil
		if err := m.Kill(); err != nil {
			n.log.Error("ending a VMM", "function", inst.pool.name, "instance", inst.id, "error", err)
		}
	})
}

// greet makes the agent at the other end of conn the instance's.
func (n *Node) greet(ctx context.Context, inst *instance, conn net.Conn) error {
	out := n.logs.writer(inst.pool.name, inst.id)
	agent, err := n.deps.Connect(ctx, conn, func(stream string, line []byte) {
		inst.tail.add(line)
		out.write(stream, inst.serving(), line)
	})
	if err != nil {
		out.close()
		return fmt.Errorf("greeting the guest's agent: %w", because(ctx, err))
	}
	inst.agent = agent
	inst.onRelease(func() { inst.agent = nil; agent.Close(); out.close() })
	return nil
}

// ready notes for describe what the start found out, and is its last step.
func (n *Node) ready(inst *instance) {
	inst.onRelease(inst.transports.close)
	info := api.Instance{Start: inst.kind, Snapshot: inst.snapshot, PID: inst.machine.PID(), Slot: inst.slot.Name}
	if v, err := n.deps.VMM.Info(inst.ctx); err == nil {
		info.VMM = v.Name
	}
	inst.pool.mu.Lock()
	inst.info = info
	inst.pool.mu.Unlock()
}

func entropy() []byte {
	b := make([]byte, 64)
	_, _ = rand.Read(b) // never fails
	return b
}

// because puts the reason for which ctx ended before an error that it caused.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}
