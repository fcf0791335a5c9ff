// Package kubernetes tests pods in microVMs on a real cluster: the one that `make
// cluster` starts, with a directory of its own.
package kubernetes

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func fetch(client *http.Client, url string) (string, error) {
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

// A pod in a microVM answers at its address and through a Service, by name too; logs,
// exec, cp and port-forward are those of any pod.
func TestPod(t *testing.T) {
	n := onNode(t)
	n.apply(pod("first", nil, "ports: [{containerPort: 8080}]", "serve", "8080") + `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: first}
  ports: [{port: 80, targetPort: 8080}]
`)
	n.ready("first")
	n.wantVMMs(1)
	n.answers("http://"+n.get("pod/first", ".status.podIP")+":8080/hostname", "first")
	n.answers("http://"+n.get("service/web", ".spec.clusterIP")+"/hostname", "first")
	// From within a guest, by the name that CoreDNS knows; and it is the guest itself.
	n.eventually("the service by its name", "hello", func() (string, error) {
		out, err := n.try("", "exec", "first", "--", "/bin/get", "http://web/")
		return strings.TrimSpace(out), err
	})
	n.answers("http://"+n.get("pod/first", ".status.podIP")+":8080/log/was-asked", "")
	n.eventually("whether its log has what it wrote", "true", func() (string, error) {
		out, err := n.try("", "logs", "first")
		return fmt.Sprint(strings.Contains(out, "was-asked\n")), err
	})
	if out, err := n.try("one\ntwo\n", "exec", "-i", "first", "--", "/bin/cat"); err != nil || out != "one\ntwo\n" {
		t.Errorf("exec of cat says %q, %v", out, err)
	}
	if out, err := n.try("", "exec", "first", "--", "/bin/exit", "7"); err == nil || !strings.Contains(err.Error(), "exit code 7") {
		t.Errorf("exec of what ends with 7: %q, %v", out, err)
	}
	n.copies("first")
	n.forwards("first")
}

// wantVMMs fails the test unless so many VMMs run.
func (n *node) wantVMMs(want int) {
	n.Helper()
	if os.Getenv(runtimeEnv) != "" {
		return
	}
	count := 0
	for _, line := range n.there() {
		if strings.HasPrefix(line, "process ") && !strings.Contains(line, "shim") {
			count++
		}
	}
	if count != want {
		n.Errorf("%d VMMs run: want %d", count, want)
	}
}

// copies has a file go in, and come back as it was.
func (n *node) copies(pod string) {
	n.Helper()
	dir := n.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	want := strings.Repeat("a line of many\n", 100_000)
	if err := os.WriteFile(in, []byte(want), 0o600); err != nil {
		n.Fatal(err)
	}
	n.kubectl("cp", in, pod+":/tmp/in")
	n.kubectl("cp", pod+":/tmp/in", out)
	if got, err := os.ReadFile(out); err != nil || string(got) != want {
		n.Errorf("of %d bytes that were copied in %d come back, %v", len(want), len(got), err)
	}
}

// forwards has kubectl listen on this host for the pod.
func (n *node) forwards(pod string) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), n.limit())
	defer cancel()
	cmd := exec.CommandContext(ctx, n.c.Kubectl(), "--kubeconfig="+n.c.Kubeconfig(), "port-forward", "pod/"+pod, ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	line, err := bufio.NewReader(out).ReadString('\n') // Forwarding from 127.0.0.1:40000 -> 8080
	words := strings.Fields(line)
	if err != nil || len(words) < 3 {
		n.Fatalf("port-forward says %q, %v", line, err)
	}
	if got, err := fetch(http.DefaultClient, "http://"+words[2]+"/hostname"); err != nil || got != pod {
		n.Errorf("forwarded, it answers %q, %v", got, err)
	}
}
