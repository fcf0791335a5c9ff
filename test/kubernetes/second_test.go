package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/deploy"
	"github.com/skep-dev/skep/shim/shimtest"
)

// secondNode is the name of the node that second starts.
const secondNode = "second"

// second starts another node of the cluster, for as long as the test takes: a kubelet and
// a containerd with skep beside those of the first, in the same namespaces, with files,
// cgroups and pods' addresses of their own.
func (n *node) second() {
	n.Helper()
	dir := filepath.Join(n.c.Dir(), secondNode)
	group := n.c.Cgroup() + "/" + secondNode
	socket := filepath.Join(dir, "containerd.sock")
	n.Cleanup(func() { n.endSecond(dir, group) })
	n.inNode(`mkdir -p "$1" && for h in $(find /sys/fs/cgroup -maxdepth 2 -type d -path "*$2"); do mkdir -p "$h/`+secondNode+`"; done`, filepath.Join(dir, "cni"), n.c.Cgroup())

	config := n.inNode("cat /etc/containerd/config.toml")
	config = strings.Replace(config, "version = 2\n", fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n", dir+"/root", dir+"/state"), 1)
	config = strings.Replace(config, cluster.PauseImage, image, 1) // which pauses, without arguments
	config = strings.Replace(config, `"/etc/cni/net.d"`, fmt.Sprintf("%q", dir+"/cni"), 1)
	n.write(dir+"/containerd.toml", config+fmt.Sprintf("\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", socket, socket+".ttrpc"))
	n.write(dir+"/cni/10-pods.conflist", strings.NewReplacer("10.244.0.0/24", "10.244.1.0/24", `"name": "pods"`, `"name": "pods-of-the-second"`).Replace(n.inNode("cat /etc/cni/net.d/10-pods.conflist")))
	n.start(dir, "containerd", n.c.Dir()+"/bin/containerd", "--config", dir+"/containerd.toml")
	archive := filepath.Join(dir, "image.tar")
	tag, err := name.NewTag(image)
	if err == nil {
		err = tarball.WriteToFile(archive, tag, shimtest.Probe(n.T))
	}
	if err != nil {
		n.Fatal(err)
	}
	n.inNode(`until ctr -a "$1" version >/dev/null 2>&1; do sleep 0.1; done
		ctr -a "$1" -n k8s.io images import "$2" && rm "$2"`, socket, archive)

	b, err := os.ReadFile(n.c.Dir() + "/etc/kubelet.yaml")
	if err != nil {
		n.Fatal(err)
	}
	kubelet := strings.NewReplacer("unix:///run/containerd/containerd.sock", "unix://"+socket, "cgroupRoot: "+n.c.Cgroup()+"\n", "cgroupRoot: "+group+"\n").Replace(string(b))
	n.write(dir+"/kubelet.yaml", kubelet+"port: 10350\nhealthzPort: 10348\npodLogsDir: "+dir+"/logs\n")
	// By the administrator's rights: those of a node are for the name of the first.
	n.start(dir, "kubelet", n.c.Dir()+"/bin/kubelet", "--config="+dir+"/kubelet.yaml", "--kubeconfig="+n.c.Kubeconfig(), "--root-dir="+dir+"/kubelet",
		"--hostname-override="+secondNode, "--node-ip="+n.get("node/skep", `.status.addresses[?(@.type=="InternalIP")].address`), "--node-labels="+deploy.NodeLabel)
	n.eventually("whether the second node is there", "node/"+secondNode+"\n", func() (string, error) { return n.try("", "get", "node/"+secondNode, "-o", "name") })
	n.kubectl("wait", "--for=condition=Ready", "node/"+secondNode, "--timeout="+n.limit().String())
}

// endSecond ends it when its pods have ended.
func (n *node) endSecond(dir, group string) {
	n.Helper()
	if n.Failed() {
		for _, name := range []string{"containerd", "kubelet"} {
			b, _ := os.ReadFile(filepath.Join(dir, name+".log"))
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			n.Logf("%s of the second node says:\n%s", name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	}
	n.eventually("pods of the second node", "", func() (string, error) {
		return n.try("", "get", "pods", "-A", "--field-selector=spec.nodeName="+secondNode, "-o", "jsonpath={.items[*].metadata.name}")
	})
	n.inNode(`for p in "$1"/*.pid; do kill -9 $(cat $p); done
		while pgrep -F "$1/kubelet.pid" >/dev/null || pgrep -F "$1/containerd.pid" >/dev/null; do sleep 0.1; done
		awk '{ print $2 }' /proc/mounts | grep "^$1/" | sort -r | xargs -r -n1 umount
		find /sys/fs/cgroup -depth -type d -path "*$2*" -exec rmdir {} +
		rm -r "$1"`, dir, group)
	n.kubectl("delete", "--ignore-not-found", "node/"+secondNode)
}

// start starts a program in the node, which endSecond ends: its number there is in a file.
func (n *node) start(dir, name string, command ...string) {
	n.Helper()
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		n.Fatal(err)
	}
	defer log.Close()
	cmd := n.c.Command(context.Background(), append([]string{"setsid", "sh", "-c", `echo $$ >"$1"; shift; exec "$@"`, name, filepath.Join(dir, name+".pid")}, command...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
}

// inNode runs a script in the node, and returns what it says.
func (n *node) inNode(script string, args ...string) string {
	n.Helper()
	out, err := n.c.Command(context.Background(), append([]string{"sh", "-euc", script, "sh"}, args...)...).Output()
	if err != nil {
		said := []byte(nil)
		if exit, ok := err.(*exec.ExitError); ok {
			said = exit.Stderr
		}
		n.Fatalf("in the node %q: %v: %s", script, err, said)
	}
	return string(out)
}

func (n *node) write(path, text string) {
	n.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
}
