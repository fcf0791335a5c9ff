package cluster

import (
	"bytes"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/skep-dev/skep/internal/atomicfile"
)

//go:embed files
var files embed.FS

var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(files, "files/*"))

func render(name string, data any) ([]byte, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Where, below the cluster's directory, the node's own versions of the host's
// directories are.
const (
	nodeVar   = "node/var"
	nodeEtc   = "node/etc" // of an overlay, as the next: what is other than on the host
	nodeLocal = "node/local"
)

// writeFiles writes all configuration.
func (c *Cluster) writeFiles() error {
	cni, err := cniDir()
	if err != nil {
		return err
	}
	data := map[string]string{
		"Dir": c.dir, "Cgroup": c.Cgroup(), "NodeName": nodeName, "PodCIDR": podCIDR, "DNSIP": dnsIP,
		"PauseImage": PauseImage, "DNSImage": DNSImage, "MetricsImage": metricsImage, "CNI": cni, "Collector": "",
	}
	if c.traces() {
		data["Collector"] = collectorGRPC
	}
	for name, to := range map[string]string{
		"kubelet.yaml": "etc/kubelet.yaml", "kube-proxy.yaml": "etc/kube-proxy.yaml", "objects.yaml": "etc/objects.yaml",
		"cni.conflist": "etc/cni.conflist", "otelcol.yaml": "etc/otelcol.yaml", "containerd.toml": "etc/containerd.toml", "audit.yaml": "etc/audit.yaml",
		metricsFile: "etc/" + metricsFile,
	} {
		b, err := render(name, data)
		if err != nil {
			return err
		}
		if err := write(c.path(to), b); err != nil {
			return err
		}
	}
	for _, name := range []string{"admin", "kubelet", "controller-manager", "scheduler", "proxy"} {
		b, err := c.kubeconfig(name)
		if err != nil {
			return err
		}
		to := c.path("etc", name+".kubeconfig")
		if name == "admin" {
			to = c.Kubeconfig()
		}
		if err := write(to, b); err != nil {
			return err
		}
	}
	return write(c.path("etc/resolv.conf"), []byte("# The node has no way out of this machine.\n"))
}

func write(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
