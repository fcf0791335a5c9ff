package kubernetes

import (
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/internal/testenv"
)

// health gives the cluster the image of a server of gRPC's service for health, and is
// its name.
func (n *node) health() (ref string) {
	n.Helper()
	program := filepath.Join(n.TempDir(), "health")
	if err := testenv.Build(program, "test/kubernetes/health"); err != nil {
		n.Fatal(err)
	}
	img, err := cluster.Image(program, v1.Config{})
	if err != nil {
		n.Fatal(err)
	}
	const name = "skep.local/health:v1"
	if err := n.c.Import(n.Context(), name, img); err != nil {
		n.Fatal(err)
	}
	return name
}

// Probes of all kinds are the kubelet's: those that fail keep a pod from being ready
// or have it restarted.
func TestProbes(t *testing.T) {
	n := onNodeOfAll(t)
	server := n.health()
	grpc := func(name, service string) string {
		return strings.Replace(pod(name, nil, `
env: [{name: PORT, value: "8080"}]
readinessProbe: {grpc: {port: 8080, service: "`+service+`"}, periodSeconds: 1, timeoutSeconds: 10}
`), image, server, 1)
	}
	n.apply(grpc("grpc", "") + "---" + grpc("grpc-unknown", "nobody") + "---" + pod("http", nil, `
startupProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 60, timeoutSeconds: 5}
livenessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 10}
readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
`, "serve", "8080") + "---" + pod("tcp", nil, `
readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
`, "serve", "8080") + "---" + pod("exec", nil, `
readinessProbe: {exec: {command: [/bin/cat, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 10}
livenessProbe: {exec: {command: [/bin/true]}, periodSeconds: 2, timeoutSeconds: 10}
lifecycle: {postStart: {exec: {command: [/bin/write, /tmp/started, hooked]}}}
`, "serve", "8080"))
	for _, name := range []string{"http", "tcp", "grpc"} {
		n.ready(name)
	}
	n.says("grpc-unknown", "Readiness probe failed: ")
	if out := n.get("pod/grpc-unknown", ".status.containerStatuses[0].ready"); out != "false" {
		t.Errorf("ready without its service: %s", out)
	}
	n.becomes("pod/exec", ".status.phase", "Running")
	n.says("exec", "Readiness probe failed")
	if out := n.get("pod/exec", ".status.containerStatuses[0].ready"); out != "false" {
		t.Errorf("ready before its probe has succeeded: %s", out)
	}
	n.kubectl("exec", "exec", "--", "/bin/write", "/tmp/ready", "yes")
	n.ready("exec")
	if out := n.kubectl("exec", "exec", "--", "/bin/cat", "/tmp/started"); out != "hooked" {
		t.Errorf("its hook has written %q", out)
	}
	if out := n.get("pod/exec", ".status.containerStatuses[0].restartCount"); out != "0" {
		t.Errorf("with probes that succeed it was restarted %s times", out)
	}
	n.answers("http://"+n.get("pod/http", ".status.podIP")+":8080/fail", "")
	n.becomes("pod/http", ".status.containerStatuses[0].restartCount", "1")
	n.ready("http")
	n.says("http", "Liveness probe failed: HTTP probe failed with statuscode: 503")
}
