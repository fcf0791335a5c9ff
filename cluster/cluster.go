// Package cluster runs a Kubernetes of one node on this machine, with skep as a
// runtime of its containerd, to develop and test on: etcd, the control plane,
// kubelet, kube-proxy, CoreDNS and containerd are the stock programs. All of it is in
// namespaces of its own (mount, network, processes, IPC, host name), so that nothing
// of the host is touched and one signal ends it. `make cluster` calls it, and the
// tests of test/kubernetes.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/prometheus/procfs"

	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/internal/marked"
)

// DefaultDir is where a cluster has its files.
const DefaultDir = "/var/lib/skep-cluster"

// What is within a cluster is the same for all: each has a network of its own.
const (
	nodeName    = "skep"
	nodeIP      = "10.97.0.1"
	podCIDR     = "10.244.0.0/24"
	serviceCIDR = "10.96.0.0/16"
	serviceIP   = "10.96.0.1"  // of the API server, as pods reach it
	dnsIP       = "10.96.0.10" // of CoreDNS
)

// Images that are in the cluster's containerd; no registry has them.
const (
	PauseImage   = "skep.local/pause:v1"
	DNSImage     = "skep.local/coredns:v1"
	HelloImage   = "skep.local/hello:v1"
	metricsImage = "skep.local/metrics-server:v1"
)

// Options of a cluster.
type Options struct {
	// Dir has all of its files; "" is DefaultDir. Two directories are two clusters.
	Dir string
	// Skep is the directory with skep's programs: skep, containerd-shim-skep-v2,
	// skep-agent and skep-store, and skep-hello for the example.
	Skep string
	// Self is the program whose verb "node" calls Node; "" is this one.
	Self string
	// Pause is the program of the pause image.
	Pause string
	// Kernels is the directory with the guest kernel.
	Kernels string
	// Bare leaves skep out of the node, for who installs it in another way.
	Bare bool
	// Traces has a collector run on the node, to which all that can be traced sends spans.
	Traces bool
	// Metrics has metrics-server in the cluster, for kubectl top.
	Metrics bool
	// Step is told what is being done; nil is allowed.
	Step func(step string)
}

// Cluster is where one is, or may be.
type Cluster struct {
	opts Options
	dir  string
	port int // of the API server, on this host and in the node
}

// New is the cluster of a directory. Nothing is done yet.
func New(o Options) (*Cluster, error) {
	dir := o.Dir
	if dir == "" {
		dir = DefaultDir
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return &Cluster{opts: o, dir: dir}, nil
}

// Dir is the directory of its files.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the path of the administrator's, for use on this host and in the
// cluster's namespaces.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// Kubectl is the path of a kubectl of the cluster's version.
func (c *Cluster) Kubectl() string { return c.path("bin/kubectl") }

// Log is the path of a program's log: "kubelet".
func (c *Cluster) Log(name string) string { return c.path("log", name+".log") }

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// mark is in the environment of all of a cluster's processes that are not in a pod.
func (c *Cluster) mark() string { return "SKEP_CLUSTER=" + c.dir }

// Cgroup is the path, below each hierarchy's mount point, of the cgroup below which all
// of its processes are.
func (c *Cluster) Cgroup() string {
	return "/skep-cluster-" + strings.Trim(strings.ReplaceAll(c.dir, "/", "-"), "-")
}

const pidFile = "pid"

// PID is the process, as this host has it, that is PID 1 in the cluster's namespaces
// and ends all of them when it ends; 0 when the cluster is not up.
func (c *Cluster) PID() (int, error) {
	b, err := os.ReadFile(c.path(pidFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", c.path(pidFile), err)
	}
	p, err := procfs.NewProc(pid)
	if err != nil || !c.isInit(p) {
		return 0, nil
	}
	return pid, nil
}

// isInit tells whether a process is the cluster's first, and alive.
func (c *Cluster) isInit(p procfs.Proc) bool {
	status, err := p.NewStatus()
	if err != nil || len(status.NSpids) < 2 || status.NSpids[len(status.NSpids)-1] != 1 {
		return false
	}
	return marked.Bears(p, c.mark())
}

// lock keeps others from starting or ending the same cluster meanwhile.
func (c *Cluster) lock() (*filelock.Lock, error) {
	path := c.path("lock")
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	l, err := filelock.Own(path)
	if errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("somebody is starting or ending the cluster of %s at this moment", c.dir)
	}
	return l, err
}

// Down ends the cluster and removes all that there is of it. It is nothing to do
// when there is none.
func (c *Cluster) Down(ctx context.Context) error {
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return c.removeCgroups()
	}
	if err := c.ours(); err != nil {
		return err
	}
	l, err := c.lock()
	if err != nil {
		return err
	}
	defer l.Release()
	if err := c.kill(ctx); err != nil {
		return err
	}
	if err := c.removeCgroups(); err != nil {
		return err
	}
	c.opts.Step("removing " + c.dir)
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("removing the cluster's files: %w", err)
	}
	return nil
}

// ours refuses a directory that holds something else than a cluster.
func (c *Cluster) ours() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			return nil
		}
	}
	return fmt.Errorf("%s is not the directory of a cluster, and will not be removed or written to: name another one with --dir", c.dir)
}

// kill ends all processes of the cluster: with PID 1 of their namespace the kernel
// kills the others.
func (c *Cluster) kill(ctx context.Context) error {
	pid, err := c.PID()
	if err != nil || pid == 0 {
		return err
	}
	c.opts.Step("ending its processes")
	fd, err := marked.Kill(pid, c.isInit)
	if err != nil {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	if fd < 0 {
		return nil
	}
	defer os.NewFile(uintptr(fd), "pidfd").Close()
	return marked.Await(ctx, fd)
}

// removeCgroups removes those of the cluster, whose processes have ended.
func (c *Cluster) removeCgroups() error {
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(top + c.Cgroup())
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if err := cgroups.RemovePath(dir); err != nil {
				return fmt.Errorf("removing cgroup %s: %w", dir, err)
			}
		}
	}
	return nil
}
