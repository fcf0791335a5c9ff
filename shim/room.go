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
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/memory"
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

	network *network.Joined
	guest   *base.Guest
	group   *group
	memory  int           // MiB that its cgroup is allowed
	pid     int           // of its VMM
	over    chan struct{} // closed when nothing of the microVM is left

	closing sync.Once
	ending  atomic.Bool // it is being ended, by us

	mu     sync.Mutex // guards what follows
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
}

// open makes a container, up to where its own process can be started. When it
// fails nothing is left.
func (o *opener) open(ctx context.Context, q *taskapi.CreateTaskRequest, spec *specs.Spec, c container) (_ *room, err error) {
	r := &room{id: q.ID, bundle: q.Bundle, spec: spec, container: c, log: o.log.With("container", q.ID), events: o.events, execs: map[string]*proc{}, over: make(chan struct{})}
	defer func() {
		if err != nil {
			r.close()
			if r.group.oomKilled() {
				err = fmt.Errorf("%w: guest and VMM needed more than the %d MiB that their cgroup may use", err, r.memory)
			}
			err = errors.Join(err, r.group.remove())
		}
	}()
	if err := r.container.measure(); err != nil {
		return nil, &refusal{err}
	}
	if _, err := openGroup(r.container.Cgroup); err != nil { // before anything is made
		return nil, err
	}
	r.init = newProc("", r.container.Process, q.Stdin, q.Stdout, q.Stderr)
	r.init.spec.Keep = true
	if q.Terminal {
		r.init.spec.TTY = true
	}
	r.init.spec.Console = r.init.spec.TTY
	if err := os.WriteFile(filepath.Join(q.Bundle, marker), nil, 0o600); err != nil {
		return nil, err
	}
	t := laps{began: time.Now()}
	if err := r.start(ctx, o, q, &t); err != nil {
		return nil, err
	}
	if r.init.io, err = openStdio(o.events.ctx, q.ID, q.Stdin, q.Stdout, q.Stderr, r.init.spec.TTY); err != nil {
		return nil, err
	}
	go r.watch()
	r.log.Info("microVM started", "snapshot", r.guest.Snapshot, "snapshot_made", r.guest.Made, "memory_mib", r.container.MemoryMiB, "duration", time.Since(t.began), slog.Group("of_it", t.attrs...))
	return r, nil
}

// refusal is an error of who asked for the container.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// start starts the microVM and gives it all that the container is to find.
func (r *room) start(ctx context.Context, o *opener, q *taskapi.CreateTaskRequest, t *laps) (err error) {
	c := r.container
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
	disk, err := maker.Disk(ctx, rootdisk.Container{ID: q.ID, Mounts: mounts, Target: target})
	if err != nil {
		return err
	}
	t.lap("disk")
	join := network.JoinOptions{GuestMAC: guest.MAC, HostMAC: guest.HostMAC, Guest: guest.Address, Gateway: guest.Gateway, Logger: r.log}
	join.Ports.Alone = r.spec.Annotations[annotationType] == "" || isOnly(r.spec)
	if c.Settings.Port != 0 {
		join.Ports.Loopback = []int{c.Settings.Port}
	}
	if r.network, err = network.Join(c.NetNS, join); err != nil {
		return err
	}
	t.lap("network")
	at := placeOf(o.cfg, q.Bundle)
	if err := os.MkdirAll(filepath.Dir(at.dir), 0o711); err != nil {
		return err
	}
	r.memory = c.MemoryMiB + o.host.Overhead()
	r.guest, err = o.host.Start(ctx, base.Spec{ID: at.id, Mark: at.mark, RunDir: at.dir, Disk: disk, MemoryMiB: c.MemoryMiB, VCPUs: c.VCPUs,
		Policy: c.Settings.Policy, Boot: c.Settings.Boot, Network: r.network, Started: r.started})
	if err != nil {
		return err
	}
	t.lap("guest")
	r.pid = r.guest.PID()
	if h := c.Hooks; h != nil {
		//lint:ignore SA1019 runtimes still have to run them
		if err := runHooks(ctx, "prestart", h.Prestart, r.state(specs.StateCreating)); err != nil {
			return err
		}
		if err := runHooks(ctx, "createRuntime", h.CreateRuntime, r.state(specs.StateCreating)); err != nil {
			return err
		}
	}
	t.lap("hooks")
	err = r.furnish(ctx)
	t.lap("furnish")
	return err
}

// laps say where the time of a start went, for the log.
type laps struct {
	began, last time.Time
	attrs       []any
}

func (l *laps) lap(name string) {
	now := time.Now()
	if l.last.IsZero() {
		l.last = l.began
	}
	l.attrs = append(l.attrs, slog.Duration(name, now.Sub(l.last)))
	l.last = now
}

// started puts the new VMM into its cgroup, so that all of the guest's memory counts
// and is bounded there.
func (r *room) started(pid int) (err error) {
	if r.group, err = openGroup(r.container.Cgroup); err != nil || r.group == nil {
		return err
	}
	return r.group.enter(pid, limits(r.spec.Linux.Resources, r.memory))
}

// furnish tells the guest what it is, and brings its files.
func (r *room) furnish(ctx context.Context) error {
	c := r.container
	seen := map[string]content{}
	for _, m := range c.renewed() {
		seen[m.Path], _ = contentOf(m.Source) // what is wrong with one is said when it is read
	}
	names, err := c.names()
	if err != nil {
		return err
	}
	if names.Hostname == "" {
		names.Hostname = hostname(c.Process.Env, r.id)
	}
	err = r.guest.VM.Start(ctx, guest.Start{Names: names, Tmpfs: c.inMemory(), DiskMiB: max(1, c.MemoryMiB/2), LimitMiB: c.ProcessesMiB, ReadOnlyRoot: c.ReadOnly,
		Sysctls: c.Sysctls, MaskedPaths: c.Masked, ReadonlyPaths: c.ReadonlyPaths})
	if err != nil {
		return err
	}
	there, stop := r.guest.While(ctx) // no connection says that the guest is gone
	defer stop()
	for _, m := range c.delivered() {
		// Before it is read: what changes meanwhile is delivered again.
		if seen[m.Path], err = contentOf(m.Source); err == nil {
			err = deliver(there, r.dial, m, nil)
		}
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Path, cause.Because(there, err))
		}
	}
	if len(seen) > 0 {
		go r.renew(seen)
	}
	return nil
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
			cancel(errors.New("the microVM has ended"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (r *room) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	return r.network.Dial(ctx, guest.ExecPort)
}

func (r *room) state(status specs.ContainerState) specs.State {
	return specs.State{Version: r.spec.Version, ID: r.id, Status: status, Pid: r.pid, Bundle: r.bundle, Annotations: r.spec.Annotations}
}

// responded says that what the guest has touched so far is what a start needs.
func (r *room) responded() {
	r.guest.WithSession(func(s memory.Session) { s.Responded() })
}

// watch ends the room when its VMM does, whoever ended it.
func (r *room) watch() {
	err := r.guest.Wait(r.events.ctx)
	if !r.ending.Load() {
		r.log.Error("the microVM has ended", "error", err, "out_of_memory", r.group.oomKilled())
	}
	r.close()
	// Its own process has ended with it, if it has not been noticed to have.
	r.finish(r.lost(), time.Now())
}

// lost is how a process has ended whose guest is gone.
func (r *room) lost() guest.ProcessExit {
	return guest.ProcessExit{Code: killed(unix.SIGKILL), Signal: int(unix.SIGKILL), OOM: r.group.oomKilled()}
}

// close ends the microVM; nothing of it is left then but its cgroup, which has
// its counters.
func (r *room) close() {
	r.ending.Store(true)
	r.closing.Do(func() {
		if r.guest != nil {
			r.guest.Close()
		}
		if r.network != nil {
			if err := r.network.Close(); err != nil {
				r.log.Warn("taking a guest out of its network", "error", err)
			}
		}
		if r.init != nil && r.init.io != nil {
			r.init.io.closeStdin()
		}
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
	exit, err := r.init.wait()
	if err != nil { // the guest is gone; watch knows
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
	if err := r.group.remove(); err != nil {
		r.log.Warn("removing a container's cgroup", "error", err)
	}
	if h := r.container.Hooks; h != nil {
		if err := runHooks(ctx, "poststop", h.Poststop, r.state(specs.StateStopped)); err != nil {
			r.log.Warn("after the container's end", "error", err)
		}
	}
}
