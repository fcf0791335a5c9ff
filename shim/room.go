package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	rootfs "github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/internal/tracing/export"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/shim/base"
	"github.com/skep-dev/skep/shim/rootdisk"
)

// room is a container that is a microVM.
type room struct {
	id, bundle string
	spec       *specs.Spec
	container  container
	log        *slog.Logger
	events     *events

	host    *base.Host
	wanted  base.Spec // of its guest
	network *network.Joined
	ports   network.Ports
	group   atomic.Pointer[group] // nil without one
	memory  int                   // MiB that its cgroup is allowed
	hooked  bool                  // hooks of its start were run, or begun
	over    chan struct{}         // closed when nothing of the microVM is left

	plan  *readyPlan  // nil: it has nothing to do with ready snapshots
	ready *base.Ready // nil: it starts the base way
	fresh fresh       // the files that it was delivered
	small []mount     // of the late ones, what comes with the clone message

	closing sync.Once
	ending  chan struct{} // closed when it is being ended, by us
	turn    sync.Mutex    // held while another guest takes its guest's place

	vmm atomic.Int64 // pid of its VMM

	begun     beginning
	tracer    trace.Tracer
	root      trace.Span // of its start; nil: containerd's calls have one
	steps     steps      // of its start
	why       string     // it has, or has not, to do with ready snapshots
	recording sync.Once
	written   chan struct{}              // closed when the start's record is
	last      atomic.Pointer[base.Guest] // that it has, or had
	startTook atomic.Int64               // nanoseconds, once it has started

	mu     sync.Mutex // guards what follows
	guest  *base.Guest
	init   *proc
	execs  map[string]*proc
	paused bool
}

// opener is what a room is made with.
type opener struct {
	cfg                config.Config
	host               *base.Host
	address, namespace string
	log                *slog.Logger
	events             *events
	spans              *export.Provider
	writing            sync.WaitGroup // records
}

// open makes a container, up to where its own process can be started; it was called for
// then. When it fails nothing is left.
func (o *opener) open(ctx context.Context, q *taskapi.CreateTaskRequest, spec *specs.Spec, c container, called time.Time) (_ *room, err error) {
	r := &room{id: q.ID, bundle: q.Bundle, spec: spec, container: c, log: o.log.With("container", q.ID), events: o.events, execs: map[string]*proc{},
		host: o.host, over: make(chan struct{}), ending: make(chan struct{}), begun: o.beginning(called), tracer: o.spans.Tracer(tracing.Scope)}
	ctx, call := r.traces(ctx, "create", trace.WithTimestamp(called))
	r.steps.over(ctx, "open", called)
	r.begun.trace = tracing.ID(ctx)
	defer func() {
		r.steps.end(err)
		tracing.End(call, err)
		if err != nil {
			r.tracedWhole(err)
			r.recorded(err)
			r.close()
			if r.group.Load().oomKilled() {
				err = fmt.Errorf("%w: guest and VMM needed more than the %d MiB that their cgroup may use", err, r.memory)
			}
			err = errors.Join(err, r.group.Load().remove())
			if r.hooked {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
				defer cancel()
				err = errors.Join(err, r.poststop(ctx))
			}
		}
	}()
	mib, err := r.container.measure()
	if err != nil {
		return nil, &refusal{err}
	}
	r.container.enlarge(mib)
	if _, err := openGroup(r.container.Cgroup); err != nil { // before anything is made
		return nil, err
	}
	r.init = newProc("", r.container.Process, q.Stdin, q.Stdout, q.Stderr)
	if q.Terminal {
		r.init.spec.TTY = true
	}
	r.init.spec.Console = r.init.spec.TTY
	if err := os.WriteFile(filepath.Join(q.Bundle, marker), nil, 0o600); err != nil {
		return nil, err
	}
	if r.why, err = r.start(ctx, o, q); err != nil {
		return nil, err
	}
	if r.init.io, err = openStdio(o.events.ctx, q.ID, q.Stdin, q.Stdout, q.Stderr, r.init.spec.TTY); err != nil {
		return nil, err
	}
	r.steps.end(nil)
	g := r.current()
	go r.watch(g)
	r.log.Info("microVM started", "snapshot", g.Snapshot, "snapshot_made", g.Made, "ready", r.why, "memory_mib", r.container.MemoryMiB, "duration", time.Since(r.begun.at),
		slog.Group("of_it", r.steps.attrs()...), slog.Group("of_guest", phaseAttrs(g.Phases())...))
	return r, nil
}

// undoLimit bounds the hooks that run after a start that has failed.
const undoLimit = 10 * time.Second

// refusal is an error of who asked for the container.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// start starts the microVM and gives it all that the container is to find before its
// process begins, and says what it has to do with ready snapshots.
func (r *room) start(ctx context.Context, o *opener, q *taskapi.CreateTaskRequest) (ready string, err error) {
	c := r.container
	step := r.steps.next(ctx, "disk")
	var mounts []rootfs.Mount
	for _, m := range q.Rootfs {
		mounts = append(mounts, rootfs.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	target := filepath.Join(q.Bundle, "rootfs")
	if root := r.spec.Root; len(mounts) == 0 && root != nil {
		target = root.Path
		if !filepath.IsAbs(target) {
			target = filepath.Join(q.Bundle, target)
		}
	}
	maker := rootdisk.Maker{Address: o.address, Namespace: o.namespace, Images: o.host.Images}
	disk, err := maker.Disk(step, rootdisk.Container{ID: q.ID, Mounts: mounts, Target: target})
	if err != nil {
		return "", err
	}
	step = r.steps.next(ctx, "snapshot lookup")
	at := placeOf(o.cfg, q.Bundle)
	if err := os.MkdirAll(filepath.Dir(at.dir), 0o711); err != nil {
		return "", err
	}
	r.memory = c.MemoryMiB + o.host.Overhead()
	r.wanted = base.Spec{ID: at.id, Mark: at.mark, RunDir: at.dir, Disk: disk, MemoryMiB: c.MemoryMiB, VCPUs: c.VCPUs,
		Policy: c.Settings.Policy, Boot: c.Settings.Snapshot == snapshotOff, Started: r.started}
	if r.container.IPv6, err = network.HasIPv6(c.NetNS); err != nil {
		return "", err
	}
	if ready, err = r.lookForReady(step); err != nil {
		return "", err
	}
	if r.makes() && r.ready.Fetches() {
		ready = r.fetchReady(r.steps.next(ctx, "fetch snapshot"))
	}
	r.steps.next(ctx, "network")
	if err := r.join(); err != nil {
		return "", err
	}
	g, err := r.startGuest(r.steps.next(ctx, "guest"))
	if err != nil {
		return "", err
	}
	if err := r.take(g); err != nil {
		return "", err
	}
	if h := c.Hooks; h != nil {
		r.hooked = true
		ctx := r.steps.next(ctx, "hooks")
		//lint:ignore SA1019 runtimes still have to run them
		if err := runHooks(ctx, "prestart", h.Prestart, r.state(specs.StateCreating)); err != nil {
			return "", err
		}
		if err := runHooks(ctx, "createRuntime", h.CreateRuntime, r.state(specs.StateCreating)); err != nil {
			return "", err
		}
	}
	return ready, r.furnish(r.steps.next(ctx, "furnish"))
}

// started puts the new VMM into its cgroup, so that all of the guest's memory counts
// and is bounded there. The cgroup of one before it, which has ended, is made anew:
// systemd removes it sooner or later.
func (r *room) started(pid int) error {
	if err := r.group.Load().remove(); err != nil {
		return err
	}
	g, err := openGroup(r.container.Cgroup)
	if err != nil || g == nil {
		return err
	}
	r.group.Store(g)
	return g.enter(pid, limits(r.spec.Linux.Resources, r.memory))
}

// join puts the guest behind a tap in the container's network namespace. Until a ready
// snapshot is made, nobody is to reach it: what a client says would be in there.
func (r *room) join() (err error) {
	r.ports.Alone = isAlone(r.spec)
	if port := r.container.Settings.Port; port != 0 {
		r.ports.Loopback = []int{port}
	}
	r.ports.Closed = r.makes()
	o := network.JoinOptions{GuestMAC: guest.MAC, HostMAC: guest.HostMAC, Guest: guest.Address, Gateway: guest.Gateway, Ports: r.ports, Logger: r.log}
	if r.container.IPv6 {
		o.Guest6, o.Gateway6 = guest.Address6, guest.Gateway6
	}
	r.network, err = network.Join(r.container.NetNS, o)
	r.wanted.Network = r.network
	return err
}

// take makes a guest the room's own. It is closed when the room is ending.
func (r *room) take(g *base.Guest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isEnding() {
		g.Close()
		return errEnded
	}
	r.guest = g
	r.last.Store(g)
	r.vmm.Store(int64(g.PID()))
	return nil
}

// part takes the guest out of the room: it is somebody else's to end.
func (r *room) part() *base.Guest {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guest
	r.guest = nil
	return g
}

func (r *room) current() *base.Guest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.guest
}

func (r *room) pid() int { return int(r.vmm.Load()) }

func (r *room) isEnding() bool {
	select {
	case <-r.ending:
		return true
	default:
		return false
	}
}

// furnish tells the guest what it is, and brings its files. One of a ready snapshot
// knows the most.
func (r *room) furnish(ctx context.Context) error {
	g := r.current()
	there, stop := g.While(ctx) // no connection says that the guest is gone
	defer stop()
	if err := r.furnishGuest(there, g); err != nil {
		return cause.Because(there, err)
	}
	return nil
}

func (r *room) furnishGuest(ctx context.Context, g *base.Guest) error {
	c := r.container
	if r.restored() {
		return r.deliverLate(ctx)
	}
	n, err := r.names()
	if err != nil {
		return err
	}
	start, err := c.startOf(n)
	if err != nil {
		return err
	}
	if !r.makes() { // which is not to keep others waiting
		defer r.host.Lane(ctx)()
	}
	err = g.VM.Start(ctx, start)
	if err != nil {
		return err
	}
	if r.makes() {
		err := r.fresh.deliver(ctx, r.dial, c.prompt())
		for _, m := range c.late() {
			if err == nil {
				err = r.withhold(ctx, m)
			}
		}
		return err
	}
	err = r.fresh.deliver(ctx, r.dial, c.delivered())
	if err == nil {
		r.keepFresh()
	}
	return err
}

// startOf is what a guest is told of the container before its process begins.
func (c container) startOf(n guest.Names) (guest.Start, error) {
	mounts, err := c.mounts()
	return guest.Start{Names: n, Dir: c.Process.Dir, Mounts: mounts, DiskMiB: max(1, c.MemoryMiB/2), LimitMiB: c.ProcessesMiB, CPUs: c.CPUs, ReadOnlyRoot: c.ReadOnly, IPv6: c.IPv6,
		Sysctls: c.Sysctls, MaskedPaths: c.Masked, ReadonlyPaths: c.readonlyPaths()}, err
}

// names are what the container is called, and whom it knows.
func (r *room) names() (guest.Names, error) {
	_ = r.fresh.know(r.container.named()) // what is wrong with one is said when it is read
	n, err := r.container.names()
	if n.Hostname == "" {
		n.Hostname = hostname(r.container.Process.Env, r.id)
	}
	return n, err
}

// hostname is what the CRI means: it is in the environment.
func hostname(env []string, id string) string {
	for _, v := range env {
		if name, ok := strings.CutPrefix(v, "HOSTNAME="); ok && name != "" {
			return name
		}
	}
	return id[:min(len(id), 63)]
}

// while derives a context that ends when nothing of the microVM is left. The
// returned function must be called.
func (r *room) while(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-r.over:
			cancel(errOver)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

var errOver = errors.New("the microVM has ended")

func (r *room) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case <-r.over:
		return nil, errOver
	default:
	}
	return r.network.Dial(ctx, guest.ExecPort)
}

func (r *room) state(status specs.ContainerState) specs.State {
	s := specs.State{Version: r.spec.Version, ID: r.id, Status: status, Pid: r.pid(), Bundle: r.bundle, Annotations: r.spec.Annotations}
	if status == specs.StateStopped {
		s.Pid = 0 // it may be another's by now
	}
	return s
}

// poststop runs the hooks that come after the container's end, once: containerd has
// what is left of a shim cleared away also where that has ended by itself.
func (r *room) poststop(ctx context.Context) error {
	if r.container.Hooks == nil {
		return nil
	}
	err := runAllHooks(ctx, "poststop", r.container.Hooks.Poststop, r.state(specs.StateStopped))
	return errors.Join(err, os.Remove(filepath.Join(r.bundle, marker)))
}

// watch ends the room when its VMM does, whoever ended it, unless the guest is not
// the room's any more.
func (r *room) watch(g *base.Guest) {
	err := g.Wait(r.events.ctx)
	if r.current() != g {
		return
	}
	if !r.isEnding() {
		r.log.Error("the microVM has ended", "error", err, "out_of_memory", r.group.Load().oomKilled())
	}
	r.close()
	// Its own process has ended with it, if it has not been noticed to have.
	r.finish(r.lost(), time.Now())
}

// lost is how a process has ended whose guest is gone.
func (r *room) lost() guest.ProcessExit {
	return guest.ProcessExit{Code: killed(unix.SIGKILL), Signal: int(unix.SIGKILL), OOM: r.group.Load().oomKilled()}
}

// close ends the microVM; nothing of it is left then but its cgroup, which has
// its counters.
func (r *room) close() {
	r.closing.Do(func() {
		r.mu.Lock()
		close(r.ending)
		r.mu.Unlock()
		r.turn.Lock() // which does not take long any more
		defer r.turn.Unlock()
		if g := r.current(); g != nil {
			g.Close()
		}
		r.ready.Release()
		if r.network != nil {
			if err := r.network.Close(); err != nil {
				r.log.Warn("taking a guest out of its network", "error", err)
			}
		}
		if r.init != nil && r.init.io != nil {
			r.init.io.closeStdin()
		}
		tidy()
		close(r.over)
	})
	<-r.over
}

// proc finds a process: the container's own, or one of those asked for later.
func (r *room) proc(exec string) (*proc, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if exec == "" {
		return r.init, nil
	}
	if p := r.execs[exec]; p != nil {
		return p, nil
	}
	return nil, errNoProcess
}

var errNoProcess = errors.New("there is no such process")

// await waits for the end of the container's own process, and with it ends the
// microVM.
func (r *room) await() {
	there, stop := r.while(r.events.ctx)
	exit, err := r.init.wait(there, r.dial)
	stop()
	if err != nil { // the guest is gone; watch knows
		if !r.isEnding() {
			r.log.Warn("the container's process is lost", "error", err)
		}
		r.close()
		exit = r.lost()
	}
	r.finish(exit, time.Now())
}

// returnLimit bounds what files that go back to the host may take.
const returnLimit = 5 * time.Second

// finish notes the end of the container's own process, once, after that of all
// others.
func (r *room) finish(exit guest.ProcessExit, at time.Time) {
	r.mu.Lock()
	first := !r.init.finishing
	r.init.finishing = true
	execs := make([]*proc, 0, len(r.execs))
	for _, p := range r.execs {
		execs = append(execs, p)
	}
	r.mu.Unlock()
	if !first {
		return
	}
	r.bringBack()
	r.rested(r.current())
	r.tracedWhole(nil)
	r.recordedEnd(exit, at)
	r.close()
	for _, p := range execs {
		if s, _, _ := p.status(); s != statusCreated {
			r.ended(p, p.exit(guest.ProcessExit{Code: killed(unix.SIGKILL)}), time.Now())
		}
	}
	r.ended(r.init, r.init.exit(exit), at)
}

func (r *room) bringBack() {
	for _, m := range r.container.Mounts {
		select {
		case <-r.over:
			return
		default:
		}
		if m.Return {
			ctx, cancel := context.WithTimeout(r.events.ctx, returnLimit)
			if err := takeBack(ctx, r.dial, m); err != nil {
				r.log.Warn("bringing back what the container left for its host", "path", m.Path, "error", err)
			}
			cancel()
		}
	}
}

// remove takes away what is left of a room that is over.
func (r *room) remove(ctx context.Context) {
	r.close()
	if err := r.group.Load().remove(); err != nil {
		r.log.Warn("removing a container's cgroup", "error", err)
	}
	if err := r.poststop(ctx); err != nil {
		r.log.Warn("after the container's end", "error", err)
	}
}
