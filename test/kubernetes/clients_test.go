package kubernetes

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/test/clients"
)

// place is the node, where services have Kourier's address.
func (n *node) place(services ...string) clients.Place {
	p := clients.Place{Dir: filepath.Join(n.c.Dir(), strings.ToLower(n.Name())), Hosts: map[string]string{}, Command: n.c.Command}
	address, _, _ := net.SplitHostPort(n.kourier())
	for _, s := range services {
		p.Hosts[host(s)] = address
	}
	return p
}

// program imports an image of one static program, and returns its name.
func (n *node) program(path string) (ref string) {
	n.Helper()
	ref = "skep.local/" + filepath.Base(path) + ":v1"
	img, err := cluster.Image(path, v1.Config{})
	if err == nil {
		err = n.c.Import(n.Context(), ref, img)
	}
	if err != nil {
		n.Fatal(err)
	}
	return ref
}

// beside copies a program to where it can be run in the node.
func (n *node) beside(p clients.Place, path string) string {
	n.Helper()
	to := filepath.Join(p.Dir, filepath.Base(path))
	if err := copyFile(path, to); err != nil {
		n.Fatal(err)
	}
	return to
}

// vSwarm's invoker calls two of its functions, which are microVMs behind its relay.
func TestKnativeVSwarm(t *testing.T) {
	dir := clients.Built(t, "vswarm", clients.VSwarmEnv, "invoker", "relay", "aes-go", "auth-go")
	n := onKnative(t)
	functions := []string{"aes-go", "auth-go"}
	relay := n.program(filepath.Join(dir, "relay"))
	for _, f := range functions {
		n.deployed(f, fmt.Sprintf(`
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %[1]s}
spec:
  template:
    metadata:
      annotations: {skep.dev/container: user-container-1, skep.dev/port: "50051"}
    spec:
      runtimeClassName: skep
      containers:
      - image: %[2]s
        ports: [{name: h2c, containerPort: 50000}]
        args: [--addr=0.0.0.0:50000, --function-endpoint-url=0.0.0.0, --function-endpoint-port=50051, --function-name=%[1]s]
      - image: %[3]s
        args: [--addr=0.0.0.0:50051]
`, f, relay, n.program(filepath.Join(dir, f))))
	}
	p := n.place(functions...)
	v := clients.Invocation{Invoker: n.beside(p, filepath.Join(dir, "invoker")), Port: 80, PerSec: 2, Seconds: 20}
	for _, f := range functions {
		v.Hosts = append(v.Hosts, host(f))
	}
	done, err := p.Invoke(t.Context(), v)
	if err == nil {
		err = v.Whole(done)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", done)
	if vmms := n.vmms(); vmms != len(functions) {
		t.Errorf("%d microVMs serve %d functions", vmms, len(functions))
	}
}

// vmms counts the node's VMMs of pods.
func (n *node) vmms() (count int) {
	n.Helper()
	for _, what := range n.there() {
		if strings.HasPrefix(what, "process ") && (strings.Contains(what, "qemu-system") || strings.Contains(what, "firecracker")) {
			count++
		}
	}
	return count
}

// STeLLAR's client calls its function in bursts, and that one calls another.
func TestKnativeStellar(t *testing.T) {
	dir := clients.Built(t, "stellar", clients.StellarEnv, "stellar", "producer-consumer")
	n := onKnative(t)
	image := n.program(filepath.Join(dir, "producer-consumer"))
	for _, name := range []string{"producer", "consumer"} {
		n.deployed(name, service(name, image, "ports: [{name: h2c, containerPort: 50051}]", "", ""))
	}
	p := n.place("producer")
	e := clients.Experiment{Client: n.beside(p, filepath.Join(dir, "stellar")), Bursts: 5, Size: 2,
		Endpoints: []string{host("producer") + ":80", "consumer.default.svc.cluster.local:80"}}
	rows, err := p.Stellar(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != e.Bursts*e.Size {
		t.Errorf("of %d calls %d were answered: %v", e.Bursts*e.Size, len(rows), rows)
	}
	t.Logf("%v", rows)
}
