package shimtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// Pods speaks to a containerd's CRI, as a kubelet does.
type Pods struct {
	*Containerd
	crictl string
	n      int
}

// CRI readies a containerd that was started with Options.CRI for pods. It needs
// crictl, on the PATH or in the directory of containerd's programs.
func CRI(t *testing.T, c *Containerd) *Pods {
	t.Helper()
	p := &Pods{Containerd: c}
	var err error
	if p.crictl, err = exec.LookPath("crictl"); err != nil {
		p.crictl = filepath.Join(os.Getenv(testenv.ContainerdEnv), "crictl")
	}
	if _, err := os.Stat(p.crictl); err != nil {
		t.Skipf("needs crictl: put it on the PATH or into the directory that %s names (go install sigs.k8s.io/cri-tools/cmd/crictl@v1.34.0)", testenv.ContainerdEnv)
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs plugins of CNI: apt-get install --no-install-recommends containernetworking-plugins")
	}
	var ranges, routes []string
	for _, subnet := range subnets(c.opts) {
		to := "0.0.0.0/0"
		if strings.Contains(subnet, ":") {
			to = "::/0"
		}
		ranges, routes = append(ranges, `[{"subnet": "`+subnet+`"}]`), append(routes, `{"dst": "`+to+`"}`)
	}
	conf := `{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
		"ipam": {"type": "host-local", "dataDir": "` + filepath.Join(c.Dir, "ipam") + `", "ranges": [` + strings.Join(ranges, ",") + `], "routes": [` + strings.Join(routes, ",") + `]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "loopback"}]}`
	dir := filepath.Join(c.Dir, "net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-pods.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.removeParent)
	c.Import("k8s.io", PauseImage, Probe(t))
	c.Import("k8s.io", ProbeImage, Probe(t))
	for end := time.Now().Add(p.Limit(30 * time.Second)); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if r := p.Try("info"); strings.Contains(r.Stdout, `"NetworkReady"`) && !strings.Contains(r.Stdout, "NetworkPluginNotReady") {
			return p
		}
	}
	t.Fatalf("the CRI is not ready: %+v\n%s", p.Try("info"), c.Log())
	return nil
}

func subnets(o Options) []string {
	if len(o.Subnets) == 0 {
		return []string{"10.98.0.0/24"}
	}
	return o.Subnets
}

// Try runs crictl.
func (p *Pods) Try(args ...string) Result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), p.Limit(2*time.Minute))
	defer cancel()
	return run(ctx, p.Command(p.crictl, append([]string{"--runtime-endpoint", "unix://" + p.Address, "--timeout", p.Limit(100 * time.Second).String()}, args...)...))
}

// Call runs crictl, which has to succeed, and returns what it says.
func (p *Pods) Call(args ...string) string {
	p.t.Helper()
	r := p.Try(args...)
	if r.Code != 0 || r.Err != nil {
		p.t.Fatalf("crictl %s: %d, %v: %s%s\n%s", strings.Join(args, " "), r.Code, r.Err, r.Stdout, r.Stderr, p.Log())
	}
	return strings.TrimSpace(r.Stdout)
}

func (p *Pods) file(v any) string {
	p.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		p.t.Fatal(err)
	}
	p.n++
	path := filepath.Join(p.Dir, fmt.Sprintf("cri-%d.json", p.n))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// Pod is a sandbox that runs.
type Pod struct {
	p        *Pods
	ID, file string
}

// CgroupParent is whose child a pod's cgroups are: a slice, as the kubelet has it,
// where systemd runs.
func (p *Pods) CgroupParent() string {
	if testenv.Has("systemd") {
		return "skeptest-pods.slice"
	}
	return "/skep-test-" + filepath.Base(p.Dir)
}

// removeParent removes it. The kubelet would keep it.
func (p *Pods) removeParent() {
	name := p.CgroupParent()
	if strings.HasSuffix(name, ".slice") {
		if out, err := exec.Command("systemctl", "stop", "skeptest.slice").CombinedOutput(); err != nil {
			p.t.Errorf("systemctl stop skeptest.slice: %v: %s", err, out)
		}
		return
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(pattern + name)
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				p.t.Errorf("removing the pods' cgroup: %v", err)
			}
		}
	}
}

// Pod makes a sandbox of the runtime skep.
func (p *Pods) Pod(name string, annotations map[string]string) *Pod {
	p.t.Helper()
	config := p.file(map[string]any{
		"metadata":      map[string]any{"name": name, "namespace": "default", "uid": name, "attempt": 1},
		"log_directory": filepath.Join(p.Dir, "pods", name), "annotations": annotations, "hostname": name,
		"linux": map[string]any{"cgroup_parent": p.CgroupParent()},
	})
	return &Pod{p, p.Call("runp", "--runtime", "skep", config), config}
}

// Create makes a container in it, and returns crictl's answer.
func (d *Pod) Create(name string, command ...string) Result {
	d.p.t.Helper()
	return d.p.Try("create", "--no-pull", d.ID, d.p.file(map[string]any{
		"metadata": map[string]any{"name": name}, "image": map[string]any{"image": ProbeImage}, "command": command, "log_path": name + ".log",
		// As the kubelet has it: processes of its own.
		"linux": map[string]any{"security_context": map[string]any{"namespace_options": map[string]any{"pid": 1}}},
	}), d.file)
}

// Run makes a container in it and starts it.
func (d *Pod) Run(name string, command ...string) (id string) {
	d.p.t.Helper()
	r := d.Create(name, command...)
	if r.Code != 0 {
		d.p.t.Fatalf("creating container %s: %s\n%s", name, r.Stderr, d.p.Log())
	}
	id = strings.TrimSpace(r.Stdout)
	d.p.Call("start", id)
	return id
}

// IP is the pod's address.
func (d *Pod) IP() string { return d.IPs()[0] }

// IPs are the pod's addresses.
func (d *Pod) IPs() []string {
	d.p.t.Helper()
	var v struct {
		Status struct {
			Network struct {
				IP            string `json:"ip"`
				AdditionalIPs []struct {
					IP string `json:"ip"`
				} `json:"additionalIps"`
			} `json:"network"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(d.p.Call("inspectp", "-o", "json", d.ID)), &v); err != nil {
		d.p.t.Fatal(err)
	}
	all := []string{v.Status.Network.IP}
	for _, a := range v.Status.Network.AdditionalIPs {
		all = append(all, a.IP)
	}
	return all
}

// Probe is the probe on the host of the containers.
func (c *Containerd) Probe(args ...string) *exec.Cmd {
	return c.Command(filepath.Join(c.shim, "probe"), args...)
}

// Probe runs the probe on the host of the pods.
func (p *Pods) Probe(args ...string) Result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), p.Limit(time.Minute))
	defer cancel()
	return run(ctx, p.Containerd.Probe(args...))
}

// Remove ends and removes it.
func (d *Pod) Remove() {
	d.p.t.Helper()
	d.p.Call("stopp", d.ID)
	d.p.Call("rmp", d.ID)
}
