package kubernetes

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing/tracingtest"
	"github.com/skep-dev/skep/internal/tracing/tree"
	"github.com/skep-dev/skep/shim/ledger"
	"github.com/skep-dev/skep/shim/shimtest"
)

// A pod's start is one trace, from the kubelet's sync of the pod to what serves its
// memory, where containerd says to the shim of which trace a call is: since 2.0.
func TestTrace(t *testing.T) {
	n := onNodeOfAll(t)
	version, err := n.c.Command(t.Context(), "containerd", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	n.apply(pod("traced", map[string]string{"skep.dev/policy": "reap"}, "", "serve", "8080"))
	n.ready("traced")
	var found *tree.Trace
	n.eventually("a trace of the pod's start", "there", func() (string, error) {
		b, err := os.ReadFile(n.c.Traces())
		if err != nil {
			return "", err
		}
		all, err := tree.Read(bytes.NewReader(b[:bytes.LastIndexByte(b, '\n')+1]))
		for _, trace := range all {
			for path, s := range tracingtest.Paths(trace) {
				if strings.HasSuffix(path, "/memory") && pathOf(trace, "k8s.pod.name", "traced") != "" && s.Attrs["skep.policy"] == "reap" {
					found = trace
					return "there", nil
				}
			}
		}
		return fmt.Sprintf("among %d traces there is none", len(all)), err
	})
	services := map[string]bool{}
	found.Each(func(s *tree.Span, _ int) { services[s.Service] = true })
	want := []string{"containerd-shim-skep-v2"}
	if !bytes.Contains(version, []byte(" v1.")) && !bytes.Contains(version, []byte(" 1.")) {
		want = append(want, "kubelet", "containerd")
	}
	for _, s := range want {
		if !services[s] {
			var b bytes.Buffer
			_ = found.Text(&b, 160)
			t.Errorf("%s has no span in\n%s", s, b.String())
		}
	}
}

// pathOf is where in a trace there is a span with that attribute.
func pathOf(t *tree.Trace, attribute, value string) string {
	for path, s := range tracingtest.Paths(t) {
		if s.Attrs[attribute] == value {
			return path
		}
	}
	return ""
}

// What a pod's container takes to start is in the node's database, as of its revision:
// of a Deployment's its ReplicaSet.
func TestRecords(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: recorded}
spec:
  selector: {matchLabels: {app: recorded}}
  template:
    metadata: {labels: {app: recorded}, annotations: {skep.dev/policy: reap}}
    spec:
      runtimeClassName: skep
      terminationGracePeriodSeconds: 1
      containers:
      - {name: app, image: %s, args: [serve, "8080"]}
`, shimtest.ProbeImage))
	n.kubectl("rollout", "status", "deployment/recorded", "--timeout="+n.limit().String())
	set := strings.TrimPrefix(strings.TrimSpace(n.kubectl("get", "replicaset", "-l", "app=recorded", "-o", "name")), "replicaset.apps/")
	name := n.kubectl("get", "pod", "-l", "app=recorded", "-o", "jsonpath={.items[0].metadata.name}")
	records, err := ledger.Open(t.Context(), filepath.Join(n.c.Dir(), "node/var/lib/skep-containerd"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer records.Close()
	record := func(ended bool) (string, error) {
		list, err := records.Invocations(t.Context(), api.InvocationQuery{Function: set})
		if err != nil || len(list) != 1 || (list[0].Container.Exit != nil) != ended {
			return fmt.Sprintf("%d records", len(list)), err
		}
		c := list[0].Container
		return fmt.Sprint(c.Namespace, "/", c.Pod, "/", c.Name, " ", list[0].Memory.Policy), nil
	}
	want := "default/" + name + "/app reap"
	n.eventually("the record of the start", want, func() (string, error) { return record(false) })
	n.kubectl("delete", "deployment/recorded", "--wait")
	n.eventually("the record of the end", want, func() (string, error) { return record(true) })
}
