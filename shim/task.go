package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// registerTasks has containerd's library serve the shim's tasks.
func registerTasks(h host) {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, sd, err := surroundings(ic)
			if err != nil {
				return nil, err
			}
			a := arguments(os.Args[1:])
			ev := newEvents(ic.Context, publisher)
			return newTasks(ic.Context, sd, ev, newRooms(ev, a.address, a.namespace, a.debug))
		},
	})
}

// tasks is the shim's task service. It hands each call to who has the container.
type tasks struct {
	ctx    context.Context // with containerd's namespace; ends with the shim
	sd     shutdown.Service
	choose chooser
	runc   *runcService
	rooms  *rooms

	mu     sync.Mutex                          // guards what follows
	owners map[string]taskapi.TTRPCTaskService // by container
}

var _ taskapi.TTRPCTaskService = (*tasks)(nil)

func newTasks(ctx context.Context, sd shutdown.Service, ev *events, rooms *rooms) (*tasks, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	t := &tasks{ctx: ctx, sd: sd, rooms: rooms, owners: map[string]taskapi.TTRPCTaskService{}}
	t.runc = &runcService{namespace: ns, id: filepath.Base(dir), dir: dir, lost: t.fail}
	first := time.AfterFunc(firstLimit, t.endUnused)
	sd.RegisterCallback(func(context.Context) error {
		first.Stop()
		if s := t.choose.unmet(); s != "" {
			logLine("%s", s)
		}
		rooms.close()
		t.runc.close()
		ev.close()
		return nil
	})
	return t, nil
}

// fail ends the shim, and with it its pod: containerd then clears away.
func (t *tasks) fail(err error) {
	logLine("%v", err)
	os.Exit(1)
}

// RegisterTTRPC makes the service known under both of the task API's versions.
// They differ in the name only.
func (t *tasks) RegisterTTRPC(s *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(s, t)
	s.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(t.State),
		"Create":     method(t.Create),
		"Start":      method(t.Start),
		"Delete":     method(t.Delete),
		"Pids":       method(t.Pids),
		"Pause":      method(t.Pause),
		"Resume":     method(t.Resume),
		"Checkpoint": method(t.Checkpoint),
		"Kill":       method(t.Kill),
		"Exec":       method(t.Exec),
		"ResizePty":  method(t.ResizePty),
		"CloseIO":    method(t.CloseIO),
		"Update":     method(t.Update),
		"Wait":       method(t.Wait),
		"Stats":      method(t.Stats),
		"Connect":    method(t.Connect),
		"Shutdown":   method(t.Shutdown),
	}})
	return nil
}

// method is a call as the transport has it.
func method[Q, A any](f func(context.Context, *Q) (*A, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		q := new(Q)
		if err := unmarshal(q); err != nil {
			return nil, err
		}
		return f(ctx, q)
	}
}

// owner returns who has a container.
func (t *tasks) owner(id string) (taskapi.TTRPCTaskService, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.owners[id]; o != nil {
		return o, nil
	}
	return nil, errgrpc.ToGRPC(fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound))
}

// to hands a call to who has the container.
func to[Q, A any](ctx context.Context, t *tasks, id string, q *Q, f func(taskapi.TTRPCTaskService, context.Context, *Q) (*A, error)) (*A, error) {
	o, err := t.owner(id)
	if err != nil {
		return nil, err
	}
	return f(o, ctx, q)
}

// Create makes a container, as what its spec says it is to be.
func (t *tasks) Create(ctx context.Context, q *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	spec, err := readSpec(q.Bundle)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("creating container %s: %w", q.ID, err))
	}
	k, err := t.choose.kindOf(q.ID, spec)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("creating container %s: %w: %w", q.ID, err, errdefs.ErrInvalidArgument))
	}
	if spec.Annotations[annotationType] == "sandbox" {
		t.rooms.ahead(spec)
	}
	var o taskapi.TTRPCTaskService = t.rooms
	if k == kindRunc {
		if q.Options, err = runcOptions(q.Options, spec); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("creating container %s: %w: %w", q.ID, err, errdefs.ErrInvalidArgument))
		}
		if o, err = t.runc.get(); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("creating container %s: %w", q.ID, err))
		}
	}
	t.mu.Lock()
	if t.owners[q.ID] != nil {
		t.mu.Unlock()
		return nil, errgrpc.ToGRPC(fmt.Errorf("container %s: %w", q.ID, errdefs.ErrAlreadyExists))
	}
	t.owners[q.ID] = o
	t.mu.Unlock()
	a, err := o.Create(ctx, q)
	if err != nil {
		t.forget(q.ID)
		if ctx.Err() != nil { // containerd has gone, which when it comes back knows of no container here
			t.endUnused()
		}
	}
	return a, err
}

// firstLimit is how long containerd may take from starting a shim to its first
// container, before it is taken to have died in between.
const firstLimit = time.Minute

// endUnused ends a shim that has no containers.
func (t *tasks) endUnused() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.owners) == 0 {
		t.sd.Shutdown()
	}
}

func (t *tasks) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owners, id)
	t.choose.gone(id)
}

// Delete ends what is left of a container, or of a process of one.
func (t *tasks) Delete(ctx context.Context, q *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	a, err := to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Delete)
	if err == nil && q.ExecID == "" {
		t.forget(q.ID)
	}
	return a, err
}

// Shutdown ends the shim, unless it has containers.
func (t *tasks) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	t.endUnused()
	return &emptypb.Empty{}, nil
}

// Connect says which processes a container's are.
func (t *tasks) Connect(ctx context.Context, q *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	a := &taskapi.ConnectResponse{}
	if o, err := t.owner(q.ID); err == nil {
		if a, err = o.Connect(ctx, q); err != nil {
			return nil, err
		}
	}
	a.ShimPid = uint32(os.Getpid())
	return a, nil
}

func (t *tasks) State(ctx context.Context, q *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.State)
}

func (t *tasks) Start(ctx context.Context, q *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Start)
}

func (t *tasks) Pids(ctx context.Context, q *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Pids)
}

func (t *tasks) Pause(ctx context.Context, q *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Pause)
}

func (t *tasks) Resume(ctx context.Context, q *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Resume)
}

func (t *tasks) Checkpoint(ctx context.Context, q *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Checkpoint)
}

func (t *tasks) Kill(ctx context.Context, q *taskapi.KillRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Kill)
}

func (t *tasks) Exec(ctx context.Context, q *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Exec)
}

func (t *tasks) ResizePty(ctx context.Context, q *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.ResizePty)
}

func (t *tasks) CloseIO(ctx context.Context, q *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.CloseIO)
}

func (t *tasks) Update(ctx context.Context, q *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Update)
}

func (t *tasks) Wait(ctx context.Context, q *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Wait)
}

func (t *tasks) Stats(ctx context.Context, q *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return to(ctx, t, q.ID, q, taskapi.TTRPCTaskService.Stats)
}
