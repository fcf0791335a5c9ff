package kubernetes

import (
	"context"
	"os"
	"strings"
	"testing"
)

// A kubelet and a containerd that are killed are started again, and pods do not notice:
// every request is answered meanwhile. A VMM that is killed is a container that ended.
func TestKills(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("survives", nil, "", "serve", "8080"))
	n.ready("survives")
	url := "http://" + n.get("pod/survives", ".status.podIP") + ":8080/start"
	n.answers(strings.TrimSuffix(url, "start"), "hello") // no probe has asked whether it listens
	was, err := fetch(n.client(), url)
	if err != nil {
		t.Fatal(err)
	}
	answers := n.load(url)
	for _, name := range []string{"kubelet", "containerd"} {
		n.killed(name)
		n.eventually("exec after the end of "+name, "there\n", func() (string, error) {
			return n.try("", "exec", "survives", "--", "/bin/echo", "there")
		})
	}
	for answer, times := range answers() {
		if answer != was {
			t.Errorf("%d requests had %q: want %q, from the same process", times, answer, was)
		}
	}
	n.becomes("pod/survives", ".status.containerStatuses[0].restartCount", "0")
	if os.Getenv(runtimeEnv) != "" {
		return
	}
	if out, err := n.c.Command(t.Context(), "sh", "-c", `for p in /proc/[0-9]*; do case $(readlink $p/exe) in *qemu*|*firecracker*) kill -9 ${p#/proc/};; esac; done`).CombinedOutput(); err != nil {
		t.Fatalf("killing the VMM: %v: %s", err, out)
	}
	n.becomes("pod/survives", ".status.containerStatuses[0].restartCount", "1")
	n.ready("survives")
	if out := n.get("pod/survives", ".status.containerStatuses[0].lastState.terminated.exitCode"); out != "137" {
		t.Errorf("the container whose VMM was killed ended with %s: want 137", out)
	}
}

// killed kills one of the node's programs, and waits for the next.
func (n *node) killed(name string) {
	n.Helper()
	pid := func() string {
		b, err := os.ReadFile(n.c.Dir() + "/pids/" + name)
		if err != nil {
			n.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	was := pid()
	if out, err := n.c.Command(context.Background(), "kill", "-9", was).CombinedOutput(); err != nil {
		n.Fatalf("killing %s: %v: %s", name, err, out)
	}
	n.eventually("whether "+name+" is another process", "true", func() (string, error) {
		return map[bool]string{true: "true", false: "false"}[pid() != was], nil
	})
}
