package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/smaps"
)

// many is how many pods of one specification there are.
const many = 50

// crowd is a Deployment of small guests. What its class reserves of the processors is less
// than the cluster's own does: they are to fit on any node with 24 GiB.
const crowd = `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: crowd}
handler: skep
overhead: {podFixed: {memory: 384Mi, cpu: 5m}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd}
spec:
  replicas: 1
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}, annotations: {skep.dev/port: "8080"}}
    spec:
      runtimeClassName: crowd
      terminationGracePeriodSeconds: 5
      containers:
      - name: app
        image: IMAGE
        args: [serve, "8080"]
        resources: {limits: {memory: 32Mi}}
`

// Fifty pods of one ready snapshot run on one node, and each answers. What they take
// beside their guests is within what the runtime class reserves.
func TestMany(t *testing.T) {
	n := onNodeOfAll(t)
	needsVMs(t)
	n.slower = 5
	n.apply(strings.ReplaceAll(crowd, "IMAGE", image))
	n.rolledOut("crowd")
	first := n.get("pod/"+n.named("crowd")[0], ".status.podIP")
	start, err := fetch(n.client(), "http://"+first+":8080/start")
	if err != nil {
		t.Fatal(err)
	}
	n.kubectl("scale", "deployment/crowd", fmt.Sprint("--replicas=", many))
	n.eventually("how many are ready", fmt.Sprint(many), func() (string, error) {
		return n.try("", "get", "deployment/crowd", "-o", "jsonpath={.status.readyReplicas}")
	})
	pods := strings.Fields(n.kubectl("get", "pods", "-l", "app=crowd", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.podIP}{"\n"}{end}`))
	if len(pods) != many {
		t.Errorf("%d pods are there: want %d", len(pods), many)
	}
	for _, p := range pods {
		name, ip, _ := strings.Cut(p, "=")
		n.answers("http://"+ip+":8080/hostname", name)
		n.answers("http://"+ip+":8080/start", start) // what has been running in the snapshot
	}
	n.wantVMMs(many)

	beside := map[string][]int64{}
	var guests, all int64
	for _, p := range n.processes() {
		mappings, err := smaps.Of(p.PID)
		if err != nil {
			t.Fatal(err)
		}
		own, guest := smaps.Beside(mappings)
		if p.kind != vmmKind {
			own, guest = own+guest, 0
		}
		beside[p.kind] = append(beside[p.kind], own)
		guests += guest
		all += own
	}
	const kib = 1 << 10
	for kind, list := range beside {
		slices.Sort(list)
		var sum int64
		for _, b := range list {
			sum += b
		}
		t.Logf("%d processes %q, PSS: %.1f MiB of each pod; median %d KiB, largest %d KiB", len(list), kind, float64(sum)/many/(1<<20), list[len(list)/2]/kib, list[len(list)-1]/kib)
	}
	t.Logf("beside the guest a pod takes %.1f MiB, and its guest %.1f MiB", float64(all)/many/(1<<20), float64(guests)/many/(1<<20))
	// A guest's own memory beyond the container's limit is in the overhead, too.
	if most := int64(384<<20) * many; all+guests-int64(32<<20)*many > most {
		t.Errorf("pods and guests take %d MiB: more than their limits and overheads", (all+guests)>>20)
	}
}
