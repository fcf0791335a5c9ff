package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// resize asks for other limits of a pod's container, while it runs.
func (n *node) resize(pod, limits string) {
	n.Helper()
	n.kubectl("patch", "pod", pod, "--subresource=resize", "--patch", `{"spec": {"containers": [{"name": "app", "resources": {"limits": `+limits+`}}]}}`)
}

// A pod gets more and less processor time in place, and memory by a restart of its
// container, where its policy is that; what its microVM cannot get in place is refused, and
// the pod says what to do.
func TestResize(t *testing.T) {
	n := onNodeOfAll(t)
	needsVMs(t)
	limits := `
resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
`
	n.apply(pod("resized", nil, limits+`
resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
`, "serve", "8080") + "---" + pod("keeps", nil, limits, "serve", "8080"))
	n.ready("resized")
	n.ready("keeps")
	url := "http://" + n.get("pod/resized", ".status.podIP") + ":8080"
	n.answers(url, "hello")
	was, err := fetch(n.client(), url+"/start")
	if err != nil {
		t.Fatal(err)
	}

	for _, cpu := range []string{"900m", "300m"} {
		n.resize("resized", `{"cpu": "`+cpu+`"}`)
		n.becomes("pod/resized", ".status.containerStatuses[0].resources.limits.cpu", cpu)
		n.eventually("what its VMM gets of 100 ms", strings.Replace(cpu, "00m", "0000", 1), func() (string, error) { return n.quota("resized") })
	}
	n.answers(url+"/start", was)

	n.resize("resized", `{"memory": "128Mi"}`)
	n.becomes("pod/resized", ".status.containerStatuses[0].restartCount", "1")
	n.becomes("pod/resized", ".status.containerStatuses[0].resources.limits.memory", "128Mi")
	n.ready("resized")
	n.answers(url+"/touch/80", "touched 80") // more than the limit that it had

	url = "http://" + n.get("pod/keeps", ".status.podIP") + ":8080/start"
	n.answers(strings.TrimSuffix(url, "start"), "hello")
	if was, err = fetch(n.client(), url); err != nil {
		t.Fatal(err)
	}
	refused := func(limits, undo, want string) {
		n.Helper()
		n.resize("keeps", limits)
		n.eventually("whether it says "+want, "true", func() (string, error) {
			out, err := n.try("", "get", "pod/keeps", "-o", `jsonpath={.status.conditions[?(@.type=="PodResizeInProgress")].message}`)
			if strings.Contains(out, want) {
				out = "true"
			}
			return out, err
		})
		n.resize("keeps", undo)
		n.eventually("whether a resize goes on", "", func() (string, error) {
			return n.try("", "get", "pod/keeps", "-o", `jsonpath={.status.conditions[?(@.type=="PodResizeInProgress")].status}`)
		})
	}
	refused(`{"memory": "128Mi"}`, `{"memory": "64Mi"}`, "its limit of memory is to be 128 MiB in place of 64 MiB: a microVM keeps the memory that it was started with; started anew it has that (in a pod, resizePolicy: RestartContainer for memory)")
	refused(`{"cpu": "1500m"}`, `{"cpu": "500m"}`, "its limit of CPU is to be 1.5: its microVM has 1 vCPUs as long as it runs")
	n.answers(url, was)
	n.becomes("pod/keeps", ".status.containerStatuses[0].restartCount", "0")
}

// quota is how many µs of each 100 ms a pod's VMM gets.
func (n *node) quota(pod string) (string, error) {
	groups, err := n.vmm(pod).Cgroups()
	if err != nil {
		return "", err
	}
	for _, g := range groups {
		file := ""
		switch {
		case slices.Contains(g.Controllers, "cpu"):
			file = filepath.Join("/sys/fs/cgroup/cpu", g.Path, "cpu.cfs_quota_us")
		case len(groups) == 1: // of version 2
			file = filepath.Join("/sys/fs/cgroup", g.Path, "cpu.max")
		default:
			continue
		}
		b, err := os.ReadFile(file)
		quota, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		return quota, err
	}
	return "", fmt.Errorf("the VMM of pod %s has no limit of CPU: %v", pod, groups)
}
