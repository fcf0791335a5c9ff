package kubernetes

import (
	"strings"
	"testing"
)

// Beside the microVM a pod has containers of runc's: init containers, sidecars, and
// ephemeral ones. They reach the guest at 127.0.0.1.
func TestSidecar(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("both", map[string]string{"skep.dev/container": "app", "skep.dev/port": "8080"}, "", "serve", "8080") + strings.NewReplacer("IMAGE", image).Replace(`
  - name: side
    image: IMAGE
    args: [serve, "9000"]
  initContainers:
  - name: before
    image: IMAGE
    args: [echo, first]
  - name: beside
    image: IMAGE
    restartPolicy: Always
    args: [serve, "9001"]
`))
	n.ready("both")
	if out := n.kubectl("logs", "both", "-c", "before"); out != "first\n" {
		t.Errorf("the init container has written %q", out)
	}
	n.eventually("the guest, from a sidecar", "both", func() (string, error) {
		out, err := n.try("", "exec", "both", "-c", "side", "--", "/bin/get", "http://127.0.0.1:8080/hostname")
		return strings.TrimSpace(out), err
	})
	for _, at := range []string{"127.0.0.1", "[::1]"} {
		n.eventually("a sidecar, from the guest at "+at, "hello", func() (string, error) {
			out, err := n.try("", "exec", "both", "-c", "app", "--", "/bin/get", "http://"+at+":9001/")
			return strings.TrimSpace(out), err
		})
	}
	ip := n.get("pod/both", ".status.podIP")
	for _, port := range []string{"8080", "9000", "9001"} {
		n.answers("http://"+ip+":"+port+"/", "hello")
	}
	n.wantVMMs(1)
	n.kubectl("debug", "both", "--image="+image, "--container=debugger", "--profile=general", "--", "/bin/get", "http://127.0.0.1:8080/hostname")
	n.eventually("what an ephemeral container has written", "both", func() (string, error) {
		out, err := n.try("", "logs", "both", "-c", "debugger")
		return strings.TrimSpace(out), err
	})
}

// What cannot be is said in an event of the pod, with what to do.
func TestRefused(t *testing.T) {
	n := onNodeOfAll(t)
	needsVMs(t)
	n.apply(pod("misspelt", map[string]string{"skep.dev/polcy": "reap"}, "", "pause") + "---" +
		pod("unknown", map[string]string{"skep.dev/policy": "lazzy"}, "", "pause") + "---" +
		pod("two", nil, "", "pause") + `
  - {name: other, image: ` + image + `, args: [pause]}
---` + strings.Replace(pod("host", nil, "volumeMounts: [{name: host, mountPath: /host}]", "pause"), "spec:", "spec:\n  volumes: [{name: host, hostPath: {path: /var/tmp}}]", 1) + `
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: misspelt}
handler: skeb
---` + strings.Replace(pod("hostnet", nil, "", "pause"), "spec:", "spec:\n  hostNetwork: true", 1) + "---" +
		strings.Replace(pod("noprogram", nil, "", "pause"), "args:", "command: [/no/such/program]\n    args:", 1) + "---" + strings.Replace(pod("handler", nil, "", "pause"), "runtimeClassName: skep", "runtimeClassName: misspelt", 1))
	n.says("misspelt", `there is no annotation skep.dev/polcy; did you mean skep.dev/policy?`)
	n.says("unknown", "there is no such memory policy")
	n.says("two", "skep.dev/container")
	n.says("host", "/host")
	n.says("hostnet", "the container is to share the host's network (hostNetwork, --net-host)")
	n.says("noprogram", "the image has no such program")
	n.says("handler", `no runtime for "skeb" is configured`)
}
