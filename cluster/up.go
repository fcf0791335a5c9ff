package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/deploy"
)

// Up has the cluster up when it returns: it starts what is not there, and goes on
// where an earlier call was interrupted. Skep's programs are renewed also in a cluster
// that was up before.
func (c *Cluster) Up(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: for namespaces, mounts and cgroups of its own")
	}
	if err := c.ours(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	knative, err := knativeDir()
	if err != nil {
		return err
	}
	paths, err := Programs(ctx, c.opts.Step)
	if err != nil {
		return err
	}
	l, err := c.lock()
	if err != nil {
		return err
	}
	defer l.Release()
	if err := c.collect(ctx, paths); err != nil {
		return err
	}
	if err := c.lay(paths); err != nil {
		return err
	}
	pid, err := c.PID()
	if err != nil {
		return err
	}
	if pid == 0 {
		c.opts.Step("starting the node")
		if err := c.start(ctx); err != nil {
			return fmt.Errorf("starting the node: %w", err)
		}
	} else if c.bare() {
		// who installs it is another
	} else if out, err := c.Command(ctx, c.install()...).CombinedOutput(); err != nil {
		return fmt.Errorf("installing skep in the node: %w: %s", err, out)
	}
	if err := c.settle(ctx, paths); err != nil {
		return err
	}
	if c.opts.Metrics {
		if err := c.Metrics(ctx); err != nil {
			return err
		}
	}
	if knative == "" {
		return nil
	}
	return c.knative(ctx, knative)
}

// lay lays down all files but what the node's programs write.
func (c *Cluster) lay(paths map[string]string) error {
	for _, dir := range []string{"bin", "skep", "log", nodeEtc, nodeEtc + ".work", nodeLocal, nodeLocal + ".work",
		nodeVar + "/lib", nodeVar + "/log", nodeVar + "/cache", nodeVar + "/tmp"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(c.path(nodeVar, "tmp"), 0o1777|fs.ModeSticky); err != nil {
		return err
	}
	for link, to := range map[string]string{c.path(nodeVar, "run"): "/run", c.path("kernels"): c.opts.Kernels} {
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for name, path := range paths {
		if programFromHost(name) {
			continue
		}
		if err := put(path, c.path("bin", name), true); err != nil {
			return fmt.Errorf("placing %s: %w", name, err)
		}
	}
	for _, name := range append([]string{"skep"}, containerd.Programs...) {
		if err := put(filepath.Join(c.opts.Skep, name), c.path("skep", name), false); err != nil {
			return fmt.Errorf("%w; `make build` makes it", err)
		}
	}
	if c.opts.Bare {
		if err := write(c.path(bareFile), nil); err != nil {
			return err
		}
	}
	if err := c.choosePort(); err != nil {
		return err
	}
	if err := c.writePKI(); err != nil {
		return err
	}
	if err := c.writeFiles(); err != nil {
		return err
	}
	// The node's /etc is an overlay, whose upper part may not be written to while it is
	// mounted.
	for from, to := range map[string]string{"etc/containerd.toml": "containerd/config.toml", "etc/cni.conflist": "cni/net.d/10-pods.conflist"} {
		if _, err := os.Stat(c.path(nodeEtc, to)); err == nil {
			continue
		}
		b, err := os.ReadFile(c.path(from))
		if err != nil {
			return err
		}
		if err := write(c.path(nodeEtc, to), b); err != nil {
			return err
		}
	}
	return nil
}

const bareFile = "bare"

// bare tells a cluster without skep, which one stays.
func (c *Cluster) bare() bool {
	_, err := os.Stat(c.path(bareFile))
	return err == nil
}

// programFromHost tells those of which the node uses the host's file.
func programFromHost(name string) bool { return name == "runc" || name == "nft" }

const (
	portFile  = "port"
	usualPort = 6443
)

// choosePort chooses the API server's port, on this host and in the node, once.
func (c *Cluster) choosePort() error {
	if err := c.readPort(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", usualPort))
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return err
	}
	c.port = l.Addr().(*net.TCPAddr).Port
	return errors.Join(l.Close(), write(c.path(portFile), fmt.Appendln(nil, c.port)))
}

func (c *Cluster) readPort() error {
	b, err := os.ReadFile(c.path(portFile))
	if err != nil {
		return err
	}
	c.port, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return err
}

// start starts the node in namespaces of its own. It goes on when this process has
// ended.
func (c *Cluster) start(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", c.port))
	if err != nil {
		return fmt.Errorf("%w; `make cluster-down` has another port chosen", err)
	}
	defer l.Close()
	door, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer door.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(c.Log("node"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer log.Close()
	self := c.opts.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	cmd := exec.Command(self, "init", "--dir", c.dir)
	cmd.Args[0], cmd.Dir = programName, "/"
	cmd.Env = append(os.Environ(), c.mark())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w, door} // readyFD, doorFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		return err
	}
	said, err := io.ReadAll(r)
	if err == nil && len(said) > 0 {
		err = errors.New(string(said))
	}
	if err != nil {
		return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	return cmd.Process.Release()
}

func ignoreExit(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	return err
}

// Command is one in the node's namespaces, with its PATH and the administrator's
// configuration of kubectl.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	pid, err := c.PID()
	if err == nil && pid == 0 {
		err = errDown
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--target=%d", pid), "--mount", "--pid", "--net", "--ipc", "--uts", "--"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+c.searchPath(), "KUBECONFIG="+c.Kubeconfig())
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// kubectl runs it on this host.
func (c *Cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Kubectl(), append([]string{"--kubeconfig=" + c.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return string(out), nil
	}
	err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	if refusal.Match(out) {
		err = &refusedError{err}
	}
	return "", err
}

// refusal is what kubectl says of objects that are wrong, whenever they are applied: what
// cannot be read, and what the API server, or a webhook, does not take. That a kind, a
// namespace or a webhook is not there is none: it may come.
var refusal = regexp.MustCompile(`(?m)^(error: )?(error (parsing|converting) |unable to decode |error validating .*: \[?(apiVersion|kind) not set)|` +
	`^Error from server \((Invalid|BadRequest|RequestEntityTooLarge)\)|failed to create typed patch object|^The (request|\S+ ".*") is invalid`)

// refusedError is an error that does not go away by itself.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// patience is how long one part of the node may take to be there.
const patience = 3 * time.Minute

// settle waits for the node's parts, and makes the objects that a cluster has.
func (c *Cluster) settle(ctx context.Context, paths map[string]string) error {
	for _, stage := range []struct {
		step string
		log  string // of whose program says more when it fails
		do   func(ctx context.Context) error
	}{
		{"waiting for containerd", "containerd", func(ctx context.Context) error {
			_, err := c.Command(ctx, "ctr", "version").Output()
			return err
		}},
		{"importing images", "containerd", func(ctx context.Context) error { return c.importImages(ctx, paths["coredns"]) }},
		{"waiting for the API server", "kube-apiserver", c.asks("get", "--raw=/readyz")},
		{"making objects", "kube-apiserver", c.asks("apply", "-f", c.path("etc/objects.yaml"))},
		{"making skep a runtime of pods", "kube-apiserver", c.runtimeClass},
		{"waiting for the node", "kubelet", c.asks("wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=10s")},
		{"waiting for CoreDNS", "kubelet", c.asks("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=10s")},
		{"waiting for service accounts", "kube-controller-manager", c.asks("get", "serviceaccount/default")},
	} {
		c.opts.Step(stage.step)
		if err := c.retry(ctx, stage.do); err != nil {
			return fmt.Errorf("%s: %w; %s says more", stage.step, err, c.Log(stage.log))
		}
	}
	return nil
}

// runtimeClass has pods find skep, unless somebody else does. The node is labelled as any
// that has skep, once it is there.
func (c *Cluster) runtimeClass(ctx context.Context) error {
	if c.bare() {
		return nil
	}
	file := c.path("etc/runtimeclass.yaml")
	if err := write(file, deploy.RuntimeClass); err != nil {
		return err
	}
	if err := c.asks("apply", "-f", file)(ctx); err != nil {
		return err
	}
	return c.asks("label", "--overwrite", "node/"+nodeName, deploy.NodeLabel)(ctx)
}

func (c *Cluster) asks(args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := c.kubectl(ctx, args...)
		return err
	}
}

// retry does something until it succeeds, or is refused.
func (c *Cluster) retry(ctx context.Context, do func(context.Context) error) error {
	return retry(ctx, do, func() error {
		if pid, err := c.PID(); err == nil && pid == 0 {
			return fmt.Errorf("the node has ended: %s says why", c.Log("node"))
		}
		return nil
	})
}

// retry is with what may end it in between.
func retry(ctx context.Context, do func(context.Context) error, goesOn func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	var last error // of the last try that was not ended by the time: that one says nothing
	for {
		err := do(ctx)
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if refused := (*refusedError)(nil); err == nil || errors.As(err, &refused) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: the last try: %w", context.Cause(ctx), last)
		case <-time.After(200 * time.Millisecond):
		}
		if err := goesOn(); err != nil {
			return err
		}
	}
}
