package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/tracing/export"
	"github.com/skep-dev/skep/shim/base"
	"github.com/skep-dev/skep/shim/rootdisk"
)

const statusCreated = task.Status_CREATED

// rooms is the task service of a shim's microVMs.
type rooms struct {
	events *events
	opener func(ctx context.Context) (*opener, error) // opens what is shared, once

	mu     sync.Mutex // guards what follows
	all    map[string]*room
	opened *opener           // what opener has opened; nil before
	pod    map[string]string // sysctls of the pod; nil: it has none, or this is no pod's shim

	collecting sync.WaitGroup
}

var _ taskapi.TTRPCTaskService = (*rooms)(nil)

func newRooms(ev *events, address, namespace string, debug bool) *rooms {
	s := &rooms{events: ev, all: map[string]*room{}}
	var mu sync.Mutex
	var o *opener
	s.opener = func(ctx context.Context) (*opener, error) {
		mu.Lock()
		defer mu.Unlock()
		if o != nil {
			return o, nil
		}
		cfg, err := loadSettings()
		if err != nil {
			return nil, err
		}
		log := logger(debug)
		h, err := base.Open(ctx, cfg, log)
		if err != nil {
			return nil, fmt.Errorf("preparing to start microVMs: %w", err)
		}
		spans, err := export.Open(ctx, export.Options{Endpoint: cfg.OTLPEndpoint, Service: "containerd-shim-skep-v2", Inherited: true, Log: log})
		if err != nil { // no start is to fail for that
			log.Warn("starts are not traced", "error", err)
			spans = export.None()
		}
		o = &opener{cfg: cfg, host: h, address: address, namespace: namespace, log: log, events: ev, spans: spans}
		s.mu.Lock()
		s.opened = o
		s.mu.Unlock()
		return o, nil
	}
	return s
}

// close ends all microVMs.
func (s *rooms) close() {
	s.mu.Lock()
	var all []*room
	for _, r := range s.all {
		all = append(all, r)
	}
	s.mu.Unlock()
	for _, r := range all {
		r.close()
	}
	s.collecting.Wait()
	s.mu.Lock()
	o := s.opened
	s.mu.Unlock()
	if o != nil {
		o.writing.Wait()
		o.spans.Close()
	}
}

// collectLimit bounds what looking for images that containerd has not any more may
// take from the end of a shim, collectGrace how long an image is kept at least.
const (
	collectLimit = 3 * time.Second
	collectGrace = 10 * time.Minute
)

// collect looks, after a shim's last container, for what no container needs.
func (s *rooms) collect(o *opener) {
	ctx, cancel := context.WithTimeout(s.events.ctx, collectLimit)
	defer cancel()
	m := rootdisk.Maker{Address: o.address, Namespace: o.namespace}
	if err := o.host.Collect(ctx, collectGrace, m.Known); err != nil {
		o.log.Warn("collecting root disks", "error", err)
	}
	if err := o.host.Push(); err != nil { // with the working set of the guest that has ended
		o.log.Warn("ready snapshots are not pushed", "error", err)
	}
}

// asked is an error as containerd's clients are to see it.
func asked(id string, err error) error {
	var refused *guest.RefusedError
	var r *refusal
	class := error(nil)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoProcess), errors.Is(err, errEnded):
		class = errdefs.ErrNotFound
	case errors.Is(err, errStarted), errors.Is(err, errNotStarted), errors.Is(err, errRunning):
		class = errdefs.ErrFailedPrecondition
	case errors.As(err, &r), errors.As(err, &refused):
		class = errdefs.ErrInvalidArgument
	}
	err = fmt.Errorf("container %s: %w", id, err)
	if class != nil {
		err = fmt.Errorf("%w: %w", err, class)
	}
	return errgrpc.ToGRPC(err)
}

var errRunning = errors.New("it runs")

func (s *rooms) room(id string) (*room, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.all[id]; r != nil {
		return r, nil
	}
	return nil, errgrpc.ToGRPC(fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound))
}

func (s *rooms) proc(id, exec string) (*room, *proc, error) {
	r, err := s.room(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := r.proc(exec)
	return r, p, asked(id, err)
}

// inPod is told what the pod is that the containers to come are of: its pause
// container. Its sysctls are those of namespaces that they would join.
func (s *rooms) inPod(pause *specs.Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pod = nil
	if pause.Linux != nil {
		s.pod = pause.Linux.Sysctl
	}
}

// inherit gives a container its pod's sysctls, but for those of its own.
func inherit(spec *specs.Spec, sysctls map[string]string) {
	if spec.Linux == nil || len(sysctls) == 0 {
		return
	}
	all := maps.Clone(sysctls)
	maps.Copy(all, spec.Linux.Sysctl)
	spec.Linux.Sysctl = all
}

func (s *rooms) Create(ctx context.Context, q *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	untidy()
	called := time.Now()
	if q.Checkpoint != "" {
		return nil, asked(q.ID, &refusal{errors.New("a microVM does not start from a checkpoint of CRIU's")})
	}
	spec, err := readSpec(q.Bundle)
	if err != nil {
		return nil, asked(q.ID, err)
	}
	s.mu.Lock()
	inherit(spec, s.pod)
	s.mu.Unlock()
	// What is wrong with a specification is said before anything is opened.
	c, err := translate(spec)
	if err != nil {
		return nil, asked(q.ID, &refusal{err})
	}
	o, err := s.opener(ctx)
	if err != nil {
		return nil, asked(q.ID, err)
	}
	r, err := o.open(ctx, q, spec, c, called)
	if err != nil {
		return nil, asked(q.ID, err)
	}
	s.mu.Lock()
	s.all[q.ID] = r
	s.mu.Unlock()
	s.events.send(&eventsapi.TaskCreate{ContainerID: q.ID, Bundle: q.Bundle, Rootfs: q.Rootfs, Checkpoint: q.Checkpoint, Pid: uint32(r.pid()),
		IO: &eventsapi.TaskIO{Stdin: q.Stdin, Stdout: q.Stdout, Stderr: q.Stderr, Terminal: q.Terminal}})
	return &taskapi.CreateTaskResponse{Pid: uint32(r.pid())}, nil
}

func (s *rooms) Start(ctx context.Context, q *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	r, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	start := r.tracedBegin
	if q.ExecID != "" {
		start = func(ctx context.Context) error { return p.start(ctx, r.dial) }
	}
	there, stop := r.while(ctx)
	err = start(there)
	if err != nil {
		err = cause.Because(there, err)
	}
	stop()
	if err != nil {
		// A process that could not be started has ended.
		switch {
		case errors.Is(err, errEnded) && q.ExecID == "" && r.isEnding():
			r.finish(r.lost(), time.Now())
		case errors.Is(err, errStarted), errors.Is(err, errEnded):
		case q.ExecID != "":
			p.end(notStarted(err), time.Now())
		default:
			r.recorded(err)
			r.finish(guest.ProcessExit{Code: notStarted(err)}, time.Now())
		}
		return nil, asked(q.ID, fmt.Errorf("starting %q: %w", p.spec.Argv[0], err))
	}
	a := &taskapi.StartResponse{Pid: uint32(r.pid())}
	if q.ExecID != "" {
		s.events.send(&eventsapi.TaskExecStarted{ContainerID: q.ID, ExecID: q.ExecID, Pid: a.Pid})
		go r.awaitExec(p)
		return a, nil
	}
	go func() {
		r.awaitRest()
		r.recorded(nil)
		r.push()
	}()
	s.events.send(&eventsapi.TaskStart{ContainerID: q.ID, Pid: a.Pid})
	if h := r.container.Hooks; h != nil {
		if err := runAllHooks(ctx, "poststart", h.Poststart, r.state(specs.StateRunning)); err != nil {
			r.log.Warn("after the container's start", "error", err)
		}
	}
	go r.await()
	return a, nil
}

// push has what was made be pushed to the object store, now that the container's start is over.
func (r *room) push() {
	if err := r.host.Push(); err != nil {
		r.log.Warn("ready snapshots are not pushed", "error", err)
	}
}

// notStarted is the exit code of what could not be started, as shells have it.
func notStarted(err error) int {
	var refused *guest.RefusedError
	if errors.As(err, &refused) && refused.Why == guest.RefusedNotExecutable {
		return 126
	}
	return 127
}

// awaitExec waits for the end of a process that was asked for later.
func (r *room) awaitExec(p *proc) {
	there, stop := r.while(r.events.ctx)
	exit, err := p.wait(there, r.dial)
	stop()
	if err != nil {
		exit = guest.ProcessExit{Code: killed(unix.SIGKILL)}
	}
	r.ended(p, exit, time.Now())
}

// ended notes the end of a process and tells containerd.
func (r *room) ended(p *proc, exit guest.ProcessExit, at time.Time) {
	if !p.end(exit.Code, at) {
		return
	}
	if exit.OOM {
		r.events.send(&eventsapi.TaskOOM{ContainerID: r.id})
	}
	id := p.id
	if id == "" {
		id = r.id
	}
	r.events.send(&eventsapi.TaskExit{ContainerID: r.id, ID: id, Pid: uint32(r.pid()), ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(at)})
}

func (s *rooms) Delete(ctx context.Context, q *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	r, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	status, code, at := p.status()
	if status == task.Status_RUNNING {
		return nil, asked(q.ID, errRunning)
	}
	a := &taskapi.DeleteResponse{Pid: uint32(r.pid()), ExitStatus: uint32(code), ExitedAt: timestamppb.New(at)}
	if q.ExecID != "" {
		p.end(code, time.Now()) // one that was not started
		p.dispose(ctx)
		r.mu.Lock()
		delete(r.execs, q.ExecID)
		r.mu.Unlock()
		return a, nil
	}
	if status == statusCreated {
		r.finish(guest.ProcessExit{Code: killed(unix.SIGKILL)}, time.Now())
		_, code, at = p.status()
		a.ExitStatus, a.ExitedAt = uint32(code), timestamppb.New(at)
	}
	p.dispose(ctx)
	r.remove(ctx)
	s.mu.Lock()
	delete(s.all, q.ID)
	if len(s.all) == 0 && s.opened != nil {
		s.collecting.Go(func() { s.collect(s.opened) })
	}
	s.mu.Unlock()
	s.events.send(&eventsapi.TaskDelete{ContainerID: q.ID, Pid: a.Pid, ExitStatus: a.ExitStatus, ExitedAt: a.ExitedAt})
	return a, nil
}

// killLimit is how long a guest may take to end what it is told to kill, before
// it is ended itself.
const killLimit = 15 * time.Second

func (s *rooms) Kill(_ context.Context, q *taskapi.KillRequest) (*emptypb.Empty, error) {
	r, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	own := q.ExecID == ""
	r.mu.Lock()
	paused := r.paused
	r.mu.Unlock()
	fatal := q.Signal == uint32(unix.SIGKILL)
	if own && fatal && paused {
		go r.close() // watch tells of its end; a guest that does not run takes no signal
		return &emptypb.Empty{}, nil
	}
	switch err := p.signal(q.Signal, q.All); {
	case errors.Is(err, errNotStarted) && own && (fatal || q.Signal == uint32(unix.SIGTERM)):
		go r.finish(guest.ProcessExit{Code: 128 + int(q.Signal)}, time.Now())
	case err != nil:
		return nil, asked(q.ID, err)
	case own && fatal:
		go func() {
			select {
			case <-p.done:
			case <-time.After(killLimit):
				r.log.Warn("the guest does not end its process: ending the guest")
				r.close()
			}
		}()
	}
	return &emptypb.Empty{}, nil
}

func (s *rooms) Exec(ctx context.Context, q *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	r, init, err := s.proc(q.ID, "")
	if err != nil {
		return nil, err
	}
	if status, _, _ := init.status(); status != task.Status_RUNNING {
		return nil, asked(q.ID, errNotStarted)
	}
	spec := &specs.Process{}
	if err := json.Unmarshal(q.Spec.GetValue(), spec); err != nil {
		return nil, asked(q.ID, &refusal{fmt.Errorf("reading what is to be run: %w", err)})
	}
	spec.Terminal = q.Terminal
	process, err := translateProcess(spec)
	if err != nil {
		return nil, asked(q.ID, &refusal{err})
	}
	p := newProc(q.ExecID, process, q.Stdin, q.Stdout, q.Stderr)
	r.mu.Lock()
	if r.execs[q.ExecID] != nil {
		r.mu.Unlock()
		return nil, errgrpc.ToGRPC(fmt.Errorf("process %s of container %s: %w", q.ExecID, q.ID, errdefs.ErrAlreadyExists))
	}
	r.execs[q.ExecID] = p
	r.mu.Unlock()
	if p.io, err = openStdio(s.events.ctx, q.ID, q.Stdin, q.Stdout, q.Stderr, q.Terminal); err != nil {
		r.mu.Lock()
		delete(r.execs, q.ExecID)
		r.mu.Unlock()
		return nil, asked(q.ID, err)
	}
	s.events.send(&eventsapi.TaskExecAdded{ContainerID: q.ID, ExecID: q.ExecID})
	return &emptypb.Empty{}, nil
}

func (s *rooms) State(_ context.Context, q *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	r, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	status, code, at := p.status()
	r.mu.Lock()
	if r.paused && q.ExecID == "" && status == task.Status_RUNNING {
		status = task.Status_PAUSED
	}
	r.mu.Unlock()
	id := p.id
	if id == "" {
		id = r.id
	}
	return &taskapi.StateResponse{ID: id, Bundle: r.bundle, Pid: uint32(r.pid()), Status: status, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
		Terminal: p.spec.TTY, ExitStatus: uint32(code), ExitedAt: timestamppb.New(at), ExecID: q.ExecID}, nil
}

func (s *rooms) Wait(ctx context.Context, q *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, errgrpc.ToGRPC(ctx.Err())
	}
	_, code, at := p.status()
	return &taskapi.WaitResponse{ExitStatus: uint32(code), ExitedAt: timestamppb.New(at)}, nil
}

// Pids are those that the host has: the VMM's, in which all others are.
func (s *rooms) Pids(_ context.Context, q *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	r, p, err := s.proc(q.ID, "")
	if err != nil {
		return nil, err
	}
	a := &taskapi.PidsResponse{}
	if !p.hasEnded() {
		info := &task.ProcessInfo{Pid: uint32(r.pid())}
		r.mu.Lock()
		defer r.mu.Unlock()
		a.Processes = append(a.Processes, info)
		for id, e := range r.execs {
			if status, _, _ := e.status(); status != task.Status_RUNNING {
				continue
			}
			d, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: id})
			if err != nil {
				return nil, err
			}
			a.Processes = append(a.Processes, &task.ProcessInfo{Pid: uint32(r.pid()), Info: d})
		}
	}
	return a, nil
}

func (s *rooms) Pause(ctx context.Context, q *taskapi.PauseRequest) (*emptypb.Empty, error) {
	r, err := s.pause(q.ID, func(r *room) error { return r.guest.Pause(ctx) }, true)
	if err == nil {
		s.events.send(&eventsapi.TaskPaused{ContainerID: r.id})
	}
	return &emptypb.Empty{}, err
}

func (s *rooms) Resume(ctx context.Context, q *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	r, err := s.pause(q.ID, func(r *room) error { return r.guest.Resume(ctx) }, false)
	if err == nil {
		s.events.send(&eventsapi.TaskResumed{ContainerID: r.id})
	}
	return &emptypb.Empty{}, err
}

func (s *rooms) pause(id string, f func(*room) error, want bool) (*room, error) {
	r, p, err := s.proc(id, "")
	if err != nil {
		return nil, err
	}
	if status, _, _ := p.status(); status != task.Status_RUNNING {
		return nil, asked(id, errNotStarted)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := f(r); err != nil {
		return nil, asked(id, err)
	}
	r.paused = want
	return r, nil
}

func (s *rooms) Checkpoint(_ context.Context, q *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errgrpc.ToGRPC(fmt.Errorf("container %s: a microVM makes no checkpoints of CRIU's: %w", q.ID, errdefs.ErrNotImplemented))
}

func (s *rooms) ResizePty(_ context.Context, q *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, asked(q.ID, p.resize(uint16(min(q.Height, 1<<16-1)), uint16(min(q.Width, 1<<16-1))))
}

func (s *rooms) CloseIO(_ context.Context, q *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.proc(q.ID, q.ExecID)
	if err != nil {
		return nil, err
	}
	if q.Stdin && p.io != nil {
		p.io.closeStdin()
	}
	return &emptypb.Empty{}, nil
}

// Update changes how much processor time the VMM gets, within what its vCPUs can use.
func (s *rooms) Update(_ context.Context, q *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	r, err := s.room(q.ID)
	if err != nil {
		return nil, err
	}
	l := &specs.LinuxResources{}
	if err := json.Unmarshal(q.Resources.GetValue(), l); err != nil {
		return nil, asked(q.ID, &refusal{fmt.Errorf("reading the new limits: %w", err)})
	}
	if err := r.container.canBecome(l); err != nil {
		return nil, asked(q.ID, &refusal{err})
	}
	return &emptypb.Empty{}, asked(q.ID, r.group.Load().update(limits(l, r.memory)))
}

func (s *rooms) Stats(_ context.Context, q *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	r, err := s.room(q.ID)
	if err != nil {
		return nil, err
	}
	v, err := r.group.Load().stats()
	if err != nil {
		return nil, asked(q.ID, err)
	}
	data, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: data}, nil
}

func (s *rooms) Connect(_ context.Context, q *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	r, err := s.room(q.ID)
	if err != nil {
		return nil, err
	}
	return &taskapi.ConnectResponse{TaskPid: uint32(r.pid())}, nil
}

func (s *rooms) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
