package kubernetes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/deploy"
)

// A cluster without skep has it by deploy/, and loses it again, while a pod answers.
func TestDeploy(t *testing.T) {
	whenAll(t)
	needs(t)
	c, err := launch(t, true)
	n := &node{T: t, c: c}
	t.Cleanup(func() {
		if c == nil {
			return
		}
		if t.Failed() {
			n.explain()
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := down(ctx, c); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Command(t.Context(), "ctr", "-n", "k8s.io", "images", "import", filepath.Join(c.Dir(), nodeImage)).CombinedOutput(); err != nil {
		t.Fatalf("importing the image: %v: %s", err, out)
	}
	there := func(what ...string) (found []string) {
		for _, path := range what {
			if _, err := os.Stat(filepath.Join(c.Dir(), "node", path)); err == nil {
				found = append(found, path)
			}
		}
		return found
	}
	installed := []string{"local/bin/containerd-shim-skep-v2", "local/bin/skep-agent", "local/bin/skep-store", "var/lib/skep-containerd/kernels", "var/lib/skep-containerd/install.json"}
	if found := there(installed...); len(found) > 0 {
		t.Fatalf("a bare cluster has %q", found)
	}
	const dir = "../../deploy"
	rollout := func(set string) {
		t.Helper()
		n.kubectl("-n", "skep-system", "rollout", "status", "daemonset/"+set, "--timeout="+n.limit().String())
	}
	n.kubectl("apply", "-k", dir)
	n.kubectl("label", "node/skep", deploy.NodeLabel)
	rollout("skep-node")
	n.eventually("what is installed", fmt.Sprint(installed), func() (string, error) { return fmt.Sprint(there(installed...)), nil })
	// containerd is ended and started again meanwhile: the pod waits for its handler.
	n.kubectl("run", "hello", "--image="+cluster.HelloImage, `--overrides={"spec": {"runtimeClassName": "skep"}}`)
	n.ready("hello")
	url := "http://" + n.get("pod/hello", ".status.podIP") + ":8080/hostname"
	n.answers(url, "hello")
	metrics := "http://" + n.kubectl("-n", "skep-system", "get", "pod", "-l", "app=skep-node", "-o", "jsonpath={.items[0].status.podIP}") + ":9464/metrics"
	n.eventually("whether the node's metrics count the pod", "true", func() (string, error) {
		text, err := fetch(n.client(), metrics)
		return fmt.Sprint(strings.Contains(text, `skep_memory_restores_total{function="hello",policy="`)), err
	})
	n.kubectl("-n", "skep-system", "rollout", "restart", "daemonset/skep-node")
	rollout("skep-node")
	n.answers(url, "hello")

	n.kubectl("-n", "skep-system", "delete", "daemonset/skep-node")
	if found := there(installed...); len(found) != len(installed) {
		t.Errorf("without the DaemonSet there is %q: want all of it", found)
	}
	n.kubectl("apply", "-k", dir+"/remove")
	rollout("skep-remove")
	n.answers(url, "hello")
	if restarts := n.get("pod/hello", ".status.containerStatuses[0].restartCount"); restarts != "0" {
		t.Errorf("the pod was started again %s times", restarts)
	}
	n.kubectl("delete", "pod/hello")
	n.eventually("what is installed", "[]", func() (string, error) { return fmt.Sprint(there(installed...)), nil })
	n.kubectl("delete", "--ignore-not-found", "-k", dir)
}
