package kubernetes

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// onKnative is for a test of Knative's services.
func onKnative(t *testing.T) *node {
	t.Helper()
	whenAll(t)
	var missing error
	if os.Getenv(cluster.KnativeEnv) == "" {
		missing = fmt.Errorf("%s is not set", cluster.KnativeEnv)
	}
	testenv.NeedThat(t, "knative", missing, "have "+cluster.KnativeEnv+" name a directory with Knative's programs and manifests (docs/kubernetes.md)")
	return onNode(t)
}

// service is the manifest of a Knative service in a microVM, which goes as soon as it
// may; more is further YAML of its container, of its template's specification, and of
// the service's own.
func service(name, image, container, template, spec string) string {
	return fmt.Sprintf(`
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
%s
  template:
    metadata:
      annotations: {autoscaling.knative.dev/window: 6s, autoscaling.knative.dev/scale-to-zero-pod-retention-period: 0s}
    spec:
      runtimeClassName: skep
%s
      containers:
      - image: %s
%s
`, name, indent(spec, 2), indent(template, 6), image, indent(container, 8))
}

// deployed makes a service, and waits for it.
func (n *node) deployed(name, manifest string) {
	n.Helper()
	n.apply(manifest)
	n.kubectl("wait", "--for=condition=Ready", "ksvc/"+name, "--timeout="+n.limit().String())
}

// kourier is where services are reached from the node.
func (n *node) kourier() string {
	return n.kubectl("-n", "kourier-system", "get", "service/kourier", "-o", "jsonpath={.spec.clusterIP}") + ":80"
}

func host(name string) string { return name + ".default." + cluster.KnativeDomain }

// call asks a service for a path.
func (n *node) call(at, name, path string) (string, error) {
	req, err := http.NewRequestWithContext(n.Context(), http.MethodGet, "http://"+at+path, nil)
	if err != nil {
		return "", err
	}
	req.Host = host(name)
	r, err := n.client().Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return strings.TrimSpace(string(b)), err
}

// burst asks a service so many times, some at once, and counts the answers.
func (n *node) burst(at, name, path string, times, atOnce int) map[string]int {
	n.Helper()
	var mu sync.Mutex
	answers := map[string]int{}
	left := make(chan struct{}, times)
	for range times {
		left <- struct{}{}
	}
	close(left)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for range left {
				got, err := n.call(at, name, path)
				if err != nil {
					got = err.Error()
				}
				mu.Lock()
				answers[got]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return answers
}

// zero waits until a service has no pod.
func (n *node) zero(name string) {
	n.Helper()
	n.eventually("pods of "+name, "", func() (string, error) {
		return n.try("", "get", "pods", "-l", "serving.knative.dev/service="+name, "-o", "name")
	})
}

// snapshots are the ready snapshots of the node.
func (n *node) snapshots() map[string]bool {
	found, err := filepath.Glob(filepath.Join(n.c.Dir(), "node/var/lib/skep-containerd/snapshots/ready-*"))
	if err != nil {
		n.Fatal(err)
	}
	all := map[string]bool{}
	for _, path := range found {
		all[filepath.Base(path)] = true
	}
	return all
}

// From zero and to zero again: none of many requests at a cold service is lost, and all
// pods of a revision start from the snapshot that the first has made.
func TestKnativeFromZero(t *testing.T) {
	n := onKnative(t)
	at, before := n.kourier(), n.snapshots()
	n.deployed("cold", service("cold", cluster.HelloImage, "name: shop\nports: [{containerPort: 8080}]", "", ""))
	for range 3 {
		n.zero("cold")
		began := time.Now()
		answers := n.burst(at, "cold", "/", 200, 50)
		t.Logf("200 requests, 50 at once, were answered within %v", time.Since(began))
		if answers["Hello, world!"] != 200 {
			t.Errorf("answers: %v", answers)
		}
	}
	made := n.snapshots()
	maps.DeleteFunc(made, func(s string, _ bool) bool { return before[s] })
	if len(made) != 1 {
		t.Errorf("there are %d ready snapshots of one revision: %v", len(made), made)
	}
	n.zero("cold")
}

// Traffic is split between two revisions, and goes back to the first.
func TestKnativeRevisions(t *testing.T) {
	n := onKnative(t)
	at := n.kourier()
	const probe = "skep.local/probe:v1" // of a registry that Knative does not ask
	if err := n.c.Import(t.Context(), probe, shimtest.Probe(t)); err != nil {
		t.Fatal(err)
	}
	revision := func(which, traffic string) string {
		return service("which", probe, fmt.Sprintf("args: [serve, \"8080\"]\nports: [{containerPort: 8080}]\nenv: [{name: K_WHICH, value: %s}]", which), "", traffic)
	}
	n.deployed("which", revision("one", ""))
	first := n.get("ksvc/which", ".status.latestReadyRevisionName")
	split := func(old, latest int) string {
		return fmt.Sprintf("traffic:\n- {revisionName: %s, percent: %d}\n- {latestRevision: true, percent: %d}", first, old, latest)
	}
	change := func(manifest string) {
		t.Helper()
		if _, err := n.try(manifest, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		n.becomes("ksvc/which", ".status.observedGeneration", n.get("ksvc/which", ".metadata.generation"))
		n.becomes("ksvc/which", `.status.conditions[?(@.type=="Ready")].status`, "True")
	}
	change(revision("two", split(50, 50)))
	answers := n.burst(at, "which", "/env/K_WHICH", 100, 10)
	if answers["one"]+answers["two"] != 100 || answers["one"] < 20 || answers["two"] < 20 {
		t.Errorf("of 100 requests to both revisions: %v", answers)
	}
	change(revision("two", split(100, 0)))
	n.eventually("what answers after the rollback", "map[one:20]", func() (string, error) {
		return fmt.Sprint(n.burst(at, "which", "/env/K_WHICH", 20, 4)), nil
	})
}

// One request at a time in each pod, and more pods for more requests, up to a limit.
func TestKnativeConcurrency(t *testing.T) {
	n := onKnative(t)
	at := n.kourier()
	manifest := service("narrow", cluster.HelloImage, "ports: [{containerPort: 8080}]", "containerConcurrency: 1", "")
	manifest = strings.Replace(manifest, "autoscaling.knative.dev/window", `autoscaling.knative.dev/max-scale: "2", autoscaling.knative.dev/window`, 1)
	n.deployed("narrow", manifest)
	n.zero("narrow")
	names := n.burst(at, "narrow", "/hostname", 40, 8)
	total := 0
	for name, times := range names {
		if !strings.HasPrefix(name, "narrow-") {
			t.Errorf("%d times: %s", times, name)
		}
		total += times
	}
	if total != 40 || len(names) > 2 {
		t.Errorf("40 requests were answered by %v", names)
	}
	t.Logf("answered by %v", names)
}

// Connections that stay open begin at a service that has no pod.
func TestKnativeStreams(t *testing.T) {
	n := onKnative(t)
	at := n.kourier()
	n.deployed("streams", service("streams", cluster.HelloImage, "ports: [{containerPort: 8080}]", "", ""))
	n.zero("streams")
	ctx, cancel := context.WithTimeout(t.Context(), n.limit())
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+at+"/ws", &websocket.DialOptions{HTTPClient: n.client(), Host: host("streams")})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if err := ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.Read(ctx); err != nil || string(got) != text {
			t.Errorf("the WebSocket says %q, %v", got, err)
		}
	}
	ws.CloseNow()
	n.zero("streams")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/sse?n=3", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host("streams")
	r, err := n.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if line, err := bufio.NewReader(r.Body).ReadString('\n'); err != nil || r.StatusCode != http.StatusOK || !strings.Contains(line, ":") {
		t.Errorf("events begin with %q, %v, %s", line, err, r.Status)
	}
}

// A stream of gRPC's, and a call, begin at a service that has no pod.
func TestKnativeGRPC(t *testing.T) {
	n := onKnative(t)
	at := n.kourier()
	n.deployed("health", service("health", n.health(), "ports: [{name: h2c, containerPort: 8080}]", "", ""))
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host("health")),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return n.c.Dial(ctx, "tcp", address) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), n.limit())
	defer cancel()
	n.zero("health")
	stream, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the stream says %v, %v", r, err)
	}
	if r, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the call says %v, %v", r, err)
	}
}
