package kubernetes

import (
	"strings"
	"testing"
)

// Which servers a pod asks for names, and whom it knows without asking, is in its guest as
// in a container of runc's beside it, by every policy.
func TestNames(t *testing.T) {
	n := onNodeOfAll(t)
	beside := strings.ReplaceAll(`
  - name: side
    image: IMAGE
    args: [pause]
`, "IMAGE", image)
	// A guest knows its pod's ports when it has one; sidecars have the others.
	annotations := map[string]string{"skep.dev/container": "app", "skep.dev/port": "8080"}
	named := func(name, more string) string {
		return with(pod(name, annotations, "", "serve", "8080"), more) + beside
	}
	n.apply(named("cluster-first", "dnsPolicy: ClusterFirst\nhostAliases: [{ip: 10.96.0.77, hostnames: [alias.test, other.test]}]\nhostname: called\nsubdomain: below") + "---" +
		named("of-the-node", "dnsPolicy: Default") + "---" +
		named("of-its-own", `dnsPolicy: None
dnsConfig: {nameservers: [10.96.0.10], searches: [default.svc.cluster.local, far.test], options: [{name: ndots, value: "3"}, {name: edns0}]}`) + `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: cluster-first}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: aliased}
spec:
  selector: {app: cluster-first}
  clusterIP: 10.96.0.77
  ports: [{port: 80, targetPort: 8080}]
`)
	for _, name := range []string{"cluster-first", "of-the-node", "of-its-own"} {
		n.ready(name)
	}
	file := func(pod, container, path string) string {
		n.Helper()
		text := n.kubectl("exec", pod, "-c", container, "--", "/bin/cat", path)
		if strings.TrimSpace(text) == "" {
			return "" // a guest has an empty line for nothing
		}
		return text
	}
	for _, name := range []string{"cluster-first", "of-the-node", "of-its-own"} {
		for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
			if its, want := file(name, "app", path), file(name, "side", path); its != want {
				t.Errorf("%s of pod %s is in the guest\n%sand beside it\n%s", path, name, its, want)
			}
		}
	}
	for _, tt := range []struct{ pod, path, want string }{
		{"cluster-first", "/etc/resolv.conf", "nameserver 10.96.0.10\n"},
		{"cluster-first", "/etc/resolv.conf", "search default.svc.cluster.local svc.cluster.local cluster.local"},
		{"cluster-first", "/etc/hosts", "10.96.0.77\talias.test\tother.test"},
		{"cluster-first", "/etc/hosts", "called.below.default.svc.cluster.local\tcalled"},
		{"cluster-first", "/etc/hostname", "called"},
		{"of-its-own", "/etc/resolv.conf", "search default.svc.cluster.local far.test\n"},
		{"of-its-own", "/etc/resolv.conf", "ndots:3"}, // in any order
		{"of-its-own", "/etc/resolv.conf", "edns0"},
	} {
		if got := file(tt.pod, "app", tt.path); !strings.Contains(got, tt.want) {
			t.Errorf("%s of pod %s is %q: want %q in it", tt.path, tt.pod, got, tt.want)
		}
	}
	if got := file("of-the-node", "app", "/etc/resolv.conf"); strings.Contains(got, "10.96.0.10") {
		t.Errorf("by the node's servers it asks the cluster's: %q", got)
	}
	// And it finds them.
	asks := func(pod, url string) {
		n.Helper()
		n.eventually(url+", from pod "+pod, "called", func() (string, error) {
			out, err := n.try("", "exec", pod, "-c", "app", "--", "/bin/get", url+"/hostname")
			return strings.TrimSpace(out), err
		})
	}
	asks("cluster-first", "http://web")
	asks("cluster-first", "http://web.default.svc.cluster.local")
	asks("cluster-first", "http://other.test")
	asks("of-its-own", "http://web")
	if out, err := n.try("", "exec", "of-the-node", "-c", "app", "--", "/bin/get", "http://web/hostname"); err == nil {
		t.Errorf("by the node's servers it finds the cluster's service: %s", out)
	}
}
