package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// service is one program of the node's.
type service struct {
	name  string
	args  []string
	after string   // address, or socket, that takes connections before it is started
	first []string // command that has to succeed before
	env   []string
}

// again is how long after its end a program is started anew.
const again = time.Second

// supervise runs services until ctx ends; one that ends is started again.
func (c *Cluster) supervise(ctx context.Context, services []service) error {
	if err := os.MkdirAll(c.path("log"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("pids"), 0o755); err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, len(services))
	for i, s := range services {
		all.Go(func() { errs[i] = c.keep(ctx, s) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) keep(ctx context.Context, s service) error {
	log, closeLog, err := openLog(c.Log(s.name))
	if err != nil {
		return err
	}
	defer closeLog()
	for ctx.Err() == nil {
		if c.await(ctx, s.after) {
			if err := c.once(ctx, s, log); err != nil {
				fmt.Fprintf(log, "skep-cluster: %s has ended: %v; it is started again\n", s.name, err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return nil
}

// once runs a service to its end.
func (c *Cluster) once(ctx context.Context, s service, log *os.File) error {
	if s.first != nil {
		cmd := c.command(ctx, log, s.first...)
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(s.first, " "), err)
		}
	}
	cmd := c.command(ctx, log, append([]string{c.path("bin", s.name)}, s.args...)...)
	cmd.Env = append(cmd.Env, s.env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	// For who would kill it: by its number in the node.
	if err := atomicfile.WriteFile(c.path("pids", s.name), fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		return errors.Join(err, cmd.Cancel(), cmd.Wait())
	}
	err := cmd.Wait()
	if err == nil {
		err = errors.New("exit code 0")
	}
	return err
}

// command is one in the node.
func (c *Cluster) command(ctx context.Context, log *os.File, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+c.searchPath(), c.mark())
	cmd.Stdout, cmd.Stderr = log, log
	return cmd
}

// searchPath is the PATH of the node's programs.
func (c *Cluster) searchPath() string {
	return c.path("bin") + ":" + "/usr/local/bin:" + os.Getenv("PATH") + ":/usr/sbin:/sbin"
}

// await waits until something answers; false: ctx has ended first.
func (c *Cluster) await(ctx context.Context, what string) bool {
	for what != "" && c.answers(ctx, what) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
	return ctx.Err() == nil
}

// answers asks once: an address or a socket has to take a connection, a URL to be
// answered with 200.
func (c *Cluster) answers(ctx context.Context, what string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if strings.HasPrefix(what, "https://") {
		return c.get(ctx, what)
	}
	network := "tcp"
	if filepath.IsAbs(what) {
		network = "unix"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, what)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (c *Cluster) get(ctx context.Context, url string) error {
	ca, err := os.ReadFile(c.path("pki/ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r, err := client.Do(req)
	if err != nil {
		return err
	}
	if err := r.Body.Close(); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, r.Status)
	}
	return nil
}

// install is the command that makes skep a runtime of the node's containerd.
func (c *Cluster) install() []string {
	return []string{c.path("skep/skep"), "containerd", "install", "--no-kernel"}
}

const containerdSocket = "/run/containerd/containerd.sock"

// services are the node's programs.
func (c *Cluster) services() []service {
	pki := func(name string) string { return c.path("pki", name) }
	etc := func(name string) string { return c.path("etc", name) }
	install := c.install()
	if c.bare() {
		install = nil
	}
	api := fmt.Sprintf("https://127.0.0.1:%d/readyz", c.port) // by then its own roles are there
	collects, traced := c.tracing()
	return append(collects, []service{
		{name: "etcd", args: []string{
			"--name=" + nodeName, "--data-dir=/var/lib/etcd", "--log-level=warn", "--unsafe-no-fsync",
			"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
			"--cert-file=" + pki("etcd.crt"), "--key-file=" + pki("etcd.key"), "--trusted-ca-file=" + pki("etcd-ca.crt"), "--client-cert-auth",
			"--listen-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls=https://127.0.0.1:2380", "--initial-cluster=" + nodeName + "=https://127.0.0.1:2380",
			"--peer-cert-file=" + pki("etcd.crt"), "--peer-key-file=" + pki("etcd.key"), "--peer-trusted-ca-file=" + pki("etcd-ca.crt"), "--peer-client-cert-auth",
		}},
		{name: "kube-apiserver", after: "127.0.0.1:2379", args: []string{
			"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + pki("etcd-ca.crt"), "--etcd-certfile=" + pki("etcd-client.crt"), "--etcd-keyfile=" + pki("etcd-client.key"),
			fmt.Sprintf("--secure-port=%d", c.port), "--advertise-address=" + nodeIP, "--service-cluster-ip-range=" + serviceCIDR,
			"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"), "--client-ca-file=" + pki("ca.crt"),
			"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"),
			"--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + pki(serviceAccounts+".pub"), "--service-account-signing-key-file=" + pki(serviceAccounts+".key"),
			"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key"), "--enable-aggregator-routing=true",
			"--audit-policy-file=" + etc("audit.yaml"), "--audit-log-path=" + c.Log("audit"), "--audit-log-maxsize=20", "--audit-log-maxbackup=1",
			"--profiling=false",
		}},
		{name: "kube-controller-manager", after: api, args: []string{
			"--kubeconfig=" + etc("controller-manager.kubeconfig"), "--authentication-kubeconfig=" + etc("controller-manager.kubeconfig"), "--authorization-kubeconfig=" + etc("controller-manager.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true", "--service-account-private-key-file=" + pki(serviceAccounts+".key"),
			"--root-ca-file=" + pki("ca.crt"), "--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
			"--service-cluster-ip-range=" + serviceCIDR, "--cluster-cidr=" + podCIDR,
		}},
		{name: "kube-scheduler", after: api, args: []string{
			"--kubeconfig=" + etc("scheduler.kubeconfig"), "--authentication-kubeconfig=" + etc("scheduler.kubeconfig"), "--authorization-kubeconfig=" + etc("scheduler.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false",
		}},
		{name: "containerd", first: install, env: traced}, // all else by its defaults
		{name: "kubelet", after: containerdSocket, args: []string{
			"--config=" + etc("kubelet.yaml"), "--kubeconfig=" + etc("kubelet.kubeconfig"), "--hostname-override=" + nodeName, "--node-ip=" + nodeIP,
		}},
		{name: "kube-proxy", after: api, args: []string{"--config=" + etc("kube-proxy.yaml")}},
	}...)
}
