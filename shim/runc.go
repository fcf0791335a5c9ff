package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
)

// runcService is the process that is runc's task service, and the connection to
// it. It is started for the first container that needs it.
type runcService struct {
	namespace, id, dir string
	// lost is called when the process has ended though nobody told it to.
	lost func(error)

	mu     sync.Mutex // guards what follows
	task   taskapi.TTRPCTaskService
	client *ttrpc.Client
	life   *os.File // the process ends when this is closed
	ended  chan struct{}
	closed bool
}

// lifeFD is where the process finds the other end of life; 3 is its listener.
const lifeFD = 4

// get returns the service, started.
func (r *runcService) get() (taskapi.TTRPCTaskService, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, errors.New("the shim is ending")
	case r.task != nil:
		return r.task, nil
	}
	if err := r.start(); err != nil {
		return nil, fmt.Errorf("starting runc's task service: %w", err)
	}
	return r.task, nil
}

func (r *runcService) start() error {
	// Its own directory: in the shim's it would take the shim's socket for its own.
	dir := filepath.Join(r.dir, "runc")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	l, conn, err := pair(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	theirs, ours, err := os.Pipe()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer theirs.Close()
	self, err := os.Executable()
	if err != nil {
		return errors.Join(err, conn.Close(), ours.Close())
	}
	cmd := exec.Command(self, "-namespace", r.namespace, "-id", r.id+"-runc")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), roleEnv+"="+roleRunc, "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr // the shim's log
	cmd.ExtraFiles = []*os.File{l, theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, conn.Close(), ours.Close())
	}
	_ = shim.AdjustOOMScore(cmd.Process.Pid) // as the shim's own
	r.life, r.ended, r.client = ours, make(chan struct{}), ttrpc.NewClient(conn)
	r.task = taskapi.NewTTRPCTaskClient(r.client)
	go r.wait(cmd)
	return nil
}

// wait is the process's one goroutine.
func (r *runcService) wait(cmd *exec.Cmd) {
	err := cmd.Wait()
	close(r.ended)
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if !closed {
		r.lost(fmt.Errorf("runc's task service of this pod has ended: %v", err))
	}
}

// close ends the process and waits for it.
func (r *runcService) close() {
	r.mu.Lock()
	was := r.closed
	r.closed = true
	r.mu.Unlock()
	if was || r.task == nil {
		return
	}
	_ = r.client.Close()
	_ = r.life.Close()
	<-r.ended
}

// pair makes a listener that one connection has been made to, which then lies in
// its queue, and nobody else can make one.
func pair(dir string) (listener *os.File, conn net.Conn, err error) {
	// Paths of bundles are longer than those of sockets may be.
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close() // and removes the path
	if conn, err = net.Dial("unix", path); err != nil {
		return nil, nil, err
	}
	if listener, err = l.File(); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return listener, conn, nil
}

// serveRunc is the process that is runc's task service.
func serveRunc(ctx context.Context, m host) {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, sd, err := surroundings(ic)
			if err != nil {
				return nil, err
			}
			go endWithShim(sd)
			return task.NewTaskService(ic.Context, publisher, sd)
		},
	})
	// Its log is the shim's, which it inherits.
	shim.RunShim(ctx, m, func(c *shim.Config) { c.NoSetupLogger = true })
}

// endWithShim ends this process when the shim closes the pipe, or dies.
func endWithShim(sd shutdown.Service) {
	_, _ = os.NewFile(lifeFD, "life").Read(make([]byte, 1))
	sd.Shutdown()
	<-sd.Done()
	os.Exit(0)
}

// surroundings are what containerd's library has for a service.
func surroundings(ic *plugin.InitContext) (shim.Publisher, shutdown.Service, error) {
	p, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, nil, err
	}
	s, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, nil, err
	}
	return p.(shim.Publisher), s.(shutdown.Service), nil
}
