package kubernetes

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A container that ends is started again, later each time, and the pod says how it
// ended.
func TestRestarts(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("fails", nil, "", "exit", "3") + "---" +
		strings.Replace(pod("once", nil, "", "echo", "done"), "spec:", "spec:\n  restartPolicy: Never", 1) + "---" +
		strings.Replace(pod("reports", nil, "", "write", "/dev/termination-log", "it", "was", "time"), "spec:", "spec:\n  restartPolicy: Never", 1))
	n.becomes("pod/once", ".status.phase", "Succeeded")
	if out := n.kubectl("logs", "once"); out != "done\n" {
		t.Errorf("its log is %q", out)
	}
	n.becomes("pod/reports", ".status.phase", "Succeeded")
	n.becomes("pod/reports", ".status.containerStatuses[0].state.terminated.message", "it was time")
	n.becomes("pod/fails", ".status.containerStatuses[0].restartCount", "2")
	n.becomes("pod/fails", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")
	if out := n.get("pod/fails", ".status.containerStatuses[0].lastState.terminated.exitCode"); out != "3" {
		t.Errorf("it ended with %s", out)
	}
	n.says("fails", "BackOff: Back-off restarting failed container app")
}

// A container that needs more memory than its limit is OOMKilled.
func TestOutOfMemory(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(strings.Replace(pod("eats", nil, "resources: {limits: {memory: 96Mi}}", "eat", "1000"), "spec:", "spec:\n  restartPolicy: Never", 1))
	n.becomes("pod/eats", ".status.phase", "Failed")
	n.becomes("pod/eats", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled")
}

// A pod that is deleted is told, and has its grace period.
func TestDeletion(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(pod("told-to-end", nil, "", "trap") + "---" + pod("hooked", nil, "lifecycle: {preStop: {exec: {command: [/bin/echo, bye]}}}", "trap"))
	for _, name := range []string{"told-to-end", "hooked"} {
		n.becomes("pod/"+name, ".status.phase", "Running")
		logs := n.follow(name)
		n.eventually("whether "+name+" is there", "true", func() (string, error) {
			out, err := n.try("", "logs", name)
			return map[bool]string{true: "true", false: "false"}[strings.Contains(out, "ready")], err
		})
		n.kubectl("delete", "pod", name, "--grace-period=30")
		if out := logs(); !strings.Contains(out, "got terminated") {
			t.Errorf("until its end %s has written %q", name, out)
		}
	}
}

// follow reads a pod's log until that ends.
func (n *node) follow(pod string) (logs func() string) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), n.limit())
	cmd := exec.CommandContext(ctx, n.c.Kubectl(), "--kubeconfig="+n.c.Kubeconfig(), "logs", "-f", pod)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		n.Fatal(err)
	}
	return func() string {
		defer cancel()
		_ = cmd.Wait()
		return out.String()
	}
}
