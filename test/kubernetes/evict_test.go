package kubernetes

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// budget is how many of the pods of an app have to be there.
func budget(app string, least int) string {
	return fmt.Sprintf(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: %[1]s}
spec:
  minAvailable: %[2]d
  selector: {matchLabels: {app: %[1]s}}
`, app, least)
}

// evict asks for the eviction of a pod.
func (n *node) evict(pod string) error {
	n.Helper()
	_, err := n.try(fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q}}`, pod),
		"create", "--raw", "/api/v1/namespaces/default/pods/"+pod+"/eviction", "-f", "-")
	return err
}

// named are the names of an app's pods.
func (n *node) named(app string) []string {
	n.Helper()
	return strings.Fields(n.kubectl("get", "pods", "-l", "app="+app, "-o", "jsonpath={.items[*].metadata.name}"))
}

// rolledOut waits for a deployment.
func (n *node) rolledOut(name string) {
	n.Helper()
	n.kubectl("rollout", "status", "deployment/"+name, "--timeout="+n.limit().String())
}

// pair is a Deployment of two that answer, with its Service and its budget.
func (n *node) pair(name string, least int) (url string) {
	n.Helper()
	n.apply(strings.ReplaceAll(deployment("one"), "rolls", name) + "---" + budget(name, least))
	n.rolledOut(name)
	url = "http://" + n.get("service/"+name, ".spec.clusterIP") + "/env/VERSION"
	n.answers(url, "one")
	n.becomes("pdb/"+name, ".status.currentHealthy", "2")
	return url
}

// only fails the test if an answer is another than that, or there is none.
func only(t *testing.T, answers map[string]int, want string) {
	t.Helper()
	t.Logf("answers: %v", answers)
	for answer, times := range answers {
		if answer != want {
			t.Errorf("%d requests had %q", times, answer)
		}
	}
	if answers[want] == 0 {
		t.Error("no request was answered")
	}
}

// A pod is evicted when its budget allows it, and no sooner: it has its grace period, and
// no request is lost.
func TestEviction(t *testing.T) {
	n := onNodeOfAll(t)
	url := n.pair("evicts", 2)
	load := n.load(url)
	victim := n.named("evicts")[0]
	if err := n.evict(victim); err == nil || !strings.Contains(err.Error(), "violate the pod's disruption budget") {
		t.Errorf("against its budget it is evicted: %v", err)
	}
	n.change(budget("evicts", 1))
	n.becomes("pdb/evicts", ".status.disruptionsAllowed", "1")
	if err := n.evict(victim); err != nil {
		t.Error(err)
	}
	n.kubectl("wait", "--for=delete", "pod/"+victim, "--timeout="+n.limit().String())
	n.rolledOut("evicts")
	only(t, load(), "one")
}

// A drain of a node ends the pods that may go as far as their budget allows; others take
// their place on another node, and every request is answered meanwhile.
func TestDrain(t *testing.T) {
	n := onNodeOfAll(t)
	n.second()
	n.kubectl("cordon", secondNode)
	url := n.pair("drains", 1)
	n.kubectl("uncordon", secondNode)
	n.Cleanup(func() { n.kubectl("uncordon", "skep") })
	load := n.load(url)
	n.kubectl("drain", "skep", "--pod-selector=app=drains", "--timeout="+n.limit().String())
	n.rolledOut("drains")
	if nodes := n.kubectl("get", "pods", "-l", "app=drains", "-o", "jsonpath={.items[*].spec.nodeName}"); nodes != secondNode+" "+secondNode {
		t.Errorf("after the drain pods are on %s", nodes)
	}
	only(t, load(), "one")
}

// A pod whose log outgrows its limit of storage is evicted by the kubelet.
func TestStorageEviction(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("fills", nil, "resources: {limits: {ephemeral-storage: 1Mi}}", "serve", "8080"))
	n.ready("fills")
	n.answers(fmt.Sprintf("http://%s:8080/burst/%d", n.get("pod/fills", ".status.podIP"), 4<<20), "")
	n.becomes("pod/fills", ".status.reason", "Evicted")
	n.says("fills", "Evicted: ")
	// Of the pod, or of its container.
	if out := strings.ToLower(n.get("pod/fills", ".status.message")); !strings.Contains(out, "ephemeral") || !strings.Contains(out, "storage") {
		t.Errorf("it is evicted for %q", out)
	}
}

// A node that is short of memory evicts a microVM for what its guest holds.
func TestPressureEviction(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("holds", nil, "resources: {limits: {memory: 160Mi}, requests: {memory: 1Mi}}", "hold", "100"))
	n.becomes("pod/holds", ".status.phase", "Running")
	n.eventually("what it says", "holds 100\n", func() (string, error) { return n.try("", "logs", "holds") })

	path := n.c.Dir() + "/etc/kubelet.yaml"
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := func(text string) {
		n.Helper()
		if err := atomicfile.WriteFile(path, []byte(text), 0o600); err != nil {
			n.Fatal(err)
		}
		n.killed("kubelet")
	}
	n.Cleanup(func() {
		set(string(config))
		n.becomes("node/skep", `.status.conditions[?(@.type=="MemoryPressure")].status`, "False")
		n.eventually("the node's taints", "", func() (string, error) {
			return n.try("", "get", "node/skep", "-o", "jsonpath={.spec.taints}")
		})
	})
	// What is evicted hard is taken from what pods may ask for, and this one would be refused.
	set(string(config) + "evictionSoft: {memory.available: 99%}\nevictionSoftGracePeriod: {memory.available: 1s}\nevictionMaxPodGracePeriod: 5\n")
	// It ends with 0 when it is told to, so that it is no failed pod, but an evicted one.
	const condition = `.status.conditions[?(@.type=="DisruptionTarget")]`
	n.becomes("pod/holds", condition+".reason", "TerminationByKubelet")
	out := n.get("pod/holds", condition+".message")
	t.Log(out)
	if !strings.Contains(out, "The node was low on resource: memory") || !strings.Contains(out, "Container app was using ") {
		t.Errorf("it is evicted for %q", out)
	}
}
