package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/snapshot"
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
	if inst.asked != nil {
		ctx = trace.ContextWithSpan(ctx, inst.asked)
	}
	ctx, span := tracing.Start(ctx, "start instance", tracing.Function.String(inst.dep.fn.Name), tracing.Instance.String(inst.id))
	inst.span = span.SpanContext()
	err := n.startEither(ctx, inst)
	span.SetAttributes(tracing.Kind.String(string(inst.kind)), tracing.Snapshot.String(inst.snapshot))
	tracing.End(span, err)
	if err == nil {
		return nil
	}
	inst.release()
	out := &StartError{Function: inst.dep.fn.Name, Instance: inst.id, Err: cause.Because(ctx, err)}
	var vm *microvm.StartError
	if errors.As(err, &vm) {
		out.Logs = vm.LastLines
	}
	return out
}

func (n *Node) startEither(ctx context.Context, inst *instance) error {
	if inst.wanted == api.StartBoot {
		return n.bootInTime(ctx, inst)
	}
	from, reason := n.startable(ctx, inst)
	if from == nil {
		if inst.wanted == api.StartRestore {
			return fmt.Errorf("%w: %w", ErrNoSnapshot, reason)
		}
		inst.noSnapshot = true
		n.log.Info("booting for want of a usable snapshot", "function", inst.pool.name, "instance", inst.id, "reason", reason)
		return n.bootInTime(ctx, inst)
	}
	id := from.Manifest.ID
	err := n.restoreInTime(ctx, inst, from)
	if err != nil && inst.tookOver() && ctx.Err() == nil {
		// The process that was started ahead may be to blame; it may have died just now.
		n.log.Warn("restoring once more, with a process of its own", "function", inst.pool.name, "instance", inst.id, "error", err)
		inst.release()
		snap, reason := n.usable(ctx, inst.dep)
		if snap == nil {
			return fmt.Errorf("%w (after %w)", reason, err)
		}
		err = n.restoreInTime(ctx, inst, &origin{Snapshot: snap})
	}
	if err == nil {
		n.snaps.Restored(id, nil)
		return nil
	}
	inst.release()
	if ctx.Err() != nil {
		return err
	}
	if microvm.SnapshotsFault(err) {
		n.restoreFailed(from, err)
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

// startable returns what the instance can start from: a snapshot that is here, or one of the object store.
func (n *Node) startable(ctx context.Context, inst *instance) (*origin, error) {
	snap, reason := n.usable(ctx, inst.dep)
	if snap != nil {
		return &origin{Snapshot: snap}, nil
	}
	from, err := n.startRemote(ctx, inst)
	if from != nil {
		return from, nil
	}
	return nil, errors.Join(reason, err)
}

// restoreFailed notes that it is the snapshot for which a restore failed.
func (n *Node) restoreFailed(from *origin, err error) {
	if from.from != nil {
		from.from.stop(err) // it is not published then
		return
	}
	// Every byte is looked at before its next use.
	n.snaps.Restored(from.Manifest.ID, err)
}

func (n *Node) bootInTime(ctx context.Context, inst *instance) error {
	limit := inst.dep.fn.ReadyTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit.D(), fmt.Errorf("not ready after %v (ready_timeout)", limit))
	defer cancel()
	boot := func(ctx context.Context) error { return n.boot(ctx, inst) }
	err := inst.try(ctx, boot)
	if errors.Is(err, errDiskLost) && ctx.Err() == nil {
		// Nothing starts with that one now, and its image may be had in another way.
		n.log.Warn("booting once more since the root disk could not be read", "function", inst.pool.name, "instance", inst.id, "error", err)
		inst.release()
		if again := inst.try(ctx, boot); again != nil {
			err = fmt.Errorf("%w (after %w)", again, err)
		} else {
			err = nil
		}
	}
	if err != nil {
		return cause.Because(ctx, err)
	}
	return nil
}

// restoreInTime has a limit of its own, so that there is time left to boot. It
// grows with guest memory, all of which a policy may read: at 100 MiB/s; and with
// ready_timeout beyond its default, for hosts that are slower than that.
func (n *Node) restoreInTime(ctx context.Context, inst *instance, from *origin) error {
	limit := max(30*time.Second, inst.dep.fn.ReadyTimeout.D()/2) + time.Duration(inst.dep.fn.MemoryMiB)*10*time.Millisecond
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %v", limit))
	defer cancel()
	if err := inst.try(ctx, func(ctx context.Context) error { return n.restore(ctx, inst, from) }); err != nil {
		return cause.Because(ctx, err)
	}
	return nil
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

// boot starts the instance from its kernel.
func (n *Node) boot(ctx context.Context, inst *instance) error {
	inst.kind, inst.snapshot = api.StartBoot, ""
	if err := n.bootable(ctx, inst.dep); err != nil {
		return err
	}
	if err := n.seat(ctx, inst, time.Now()); err != nil {
		return err
	}
	spec, err := n.spec(inst)
	if err != nil {
		return err
	}
	dir := inst.memDir()
	if err := makePrivate(dir); err != nil {
		return err
	}
	inst.onRelease(func() { os.RemoveAll(dir) })
	start := inst.dep.start
	if inst.dep.fn.Egress == api.EgressNAT {
		start.Nameservers = n.cfg.Nameservers
	}
	vm, err := n.starter.Boot(ctx, microvm.BootSpec{Spec: spec, MemoryDir: dir, Start: &start})
	if err != nil {
		return err
	}
	n.ready(inst, vm)
	return nil
}

// restore starts the instance from a snapshot, which it takes over.
func (n *Node) restore(ctx context.Context, inst *instance, from *origin) error {
	inst.kind, inst.snapshot = api.StartRestore, from.Manifest.ID
	inst.onRelease(from.Release)
	session, err := n.openMemory(ctx, inst, from)
	if err != nil {
		return err
	}
	spec, err := n.restoreSpec(ctx, inst, from.Snapshot, session)
	if err != nil {
		session.Close()
		return err
	}
	vm, err := n.starter.Restore(ctx, spec)
	if err != nil {
		return err
	}
	n.ready(inst, vm)
	return nil
}

// restoreSpec finds the instance a place: one where a process waits already, or a
// new one.
func (n *Node) restoreSpec(ctx context.Context, inst *instance, snap *snapshot.Snapshot, session memory.Session) (microvm.RestoreSpec, error) {
	var ahead *place
	began := time.Now()
	if !session.Mapped() {
		ahead = n.shells.take(inst.dep, snap.Manifest.ID)
	}
	if ahead != nil {
		inst.sit(ctx, ahead, began)
	} else if err := n.seat(ctx, inst, began); err != nil {
		return microvm.RestoreSpec{}, err
	}
	spec, err := n.spec(inst)
	return microvm.RestoreSpec{Spec: spec, State: snap.StatePath(), Memory: snap.MemoryPath(), Session: session, Shell: inst.place.shell, Ahead: inst.place.ahead}, err
}

func (n *Node) openMemory(ctx context.Context, inst *instance, from *origin) (memory.Session, error) {
	name := n.policyFor(inst)
	policy, err := n.deps.Policy(name)
	if err != nil {
		return nil, fmt.Errorf("memory policy %q: %w", name, err)
	}
	// The session outlives the start: only the instance's end cancels it.
	session, err := policy.Open(inst.ctx, from.source())
	if err != nil {
		return nil, fmt.Errorf("memory policy %q: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		session.Close()
		return nil, err
	}
	return session, nil
}

func (n *Node) policyFor(inst *instance) string { return orDefault(inst.policy, n.policyOf(inst.dep)) }

// policyOf is the memory policy of the deployment's restores.
func (n *Node) policyOf(d *deployment) string {
	return orDefault(d.fn.MemoryPolicy, n.cfg.DefaultPolicy)
}

func memorySource(snap *snapshot.Snapshot) memory.Source {
	return memory.Source{SnapshotID: snap.Manifest.ID, Path: snap.MemoryPath(), Size: snap.MemorySize(), Dir: snap.TraceDir()}
}

// spec is the instance's microVM, which runs at the instance's place.
func (n *Node) spec(inst *instance) (microvm.Spec, error) {
	d, at := inst.dep, inst.place
	disk, err := n.disk(inst)
	if err != nil {
		return microvm.Spec{}, fmt.Errorf("its root disk: %w", err)
	}
	out := n.logs.writer(inst.pool.name, inst.id)
	inst.onRelease(out.close)
	return microvm.Spec{
		ID: inst.id, Machine: n.machine(d, disk), Host: n.host(at),
		Dial: func(ctx context.Context, port int) (net.Conn, error) { return n.deps.Dial(ctx, at.slot, port) },
		Server: microvm.Server{
			Name: d.fn.Name, Port: d.fn.Port, ReadyPath: d.fn.ReadyPath, CloneHook: d.fn.CloneHook, Connections: d.fn.Concurrency,
		},
		Logs:  func(stream string, line []byte) { out.write(stream, inst.serving(), line) },
		Phase: inst.tellPhase,
	}, nil
}

// ready takes the microVM over, and notes for describe what its start found out.
func (n *Node) ready(inst *instance, vm *microvm.VM) {
	inst.vm = vm
	inst.onRelease(vm.Close)
	slot := inst.phases.Slot
	inst.phases = vm.Phases()
	inst.phases.Slot = slot
	info := api.Instance{Start: inst.kind, Snapshot: inst.snapshot, PID: vm.PID(), Slot: inst.place.slot.Name}
	if v, err := n.deps.VMM.Info(inst.ctx); err == nil {
		info.VMM = v.Name
	}
	inst.pool.mu.Lock()
	inst.info = info
	inst.pool.mu.Unlock()
}
