// Package containerd has tests of skep as a runtime of real containerds: the
// host's, and the one in the directory that SKEP_CONTAINERD names.
package containerd

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/shim/shimtest"
)

func TestMain(m *testing.M) { shimtest.Main(m) }

// inPod are the flags of a container that the CRI would make: one of a pod whose
// microVM is the container "app".
func inPod(pod, name string) []string {
	kind := "container"
	if name == "" {
		kind = "sandbox"
	}
	return []string{"--runtime", "io.containerd.skep.v2",
		"--annotation", "io.kubernetes.cri.container-type=" + kind,
		"--annotation", "io.kubernetes.cri.sandbox-id=" + pod,
		"--annotation", "io.kubernetes.cri.container-name=" + name,
		"--annotation", "skep.dev/container=app"}
}

func args(list ...any) (out []string) {
	for _, a := range list {
		switch a := a.(type) {
		case []string:
			out = append(out, a...)
		default:
			out = append(out, fmt.Sprint(a))
		}
	}
	return out
}

// Containers of a pod that are no microVMs are runc's, share one shim, and behave
// under it as under runc's own.
func TestSidecars(t *testing.T) {
	shimtest.Each(t, func(t *testing.T, c *shimtest.Containerd) {
		c.Import("default", shimtest.ProbeImage, shimtest.Probe(t))
		c.Must(args("run", "-d", inPod("pod", ""), shimtest.ProbeImage, "pod", "pause")...)
		c.Must(args("run", "-d", inPod("pod", "side"), shimtest.ProbeImage, "side", "pause")...)
		if n := len(c.Shims()); n != 2 {
			t.Errorf("a pod without a microVM has %d processes of the shim, want 2: %v", n, c.Shims())
		}
		for _, p := range c.Shims() {
			t.Logf("%s: %s", resident(p.PID), p.Command)
		}
		if out := c.Must("task", "exec", "--exec-id", "e1", "side", "/bin/echo", "from", "inside"); out != "from inside\n" {
			t.Errorf("exec says %q", out)
		}
		if r := c.Run("task", "exec", "--exec-id", "e2", "side", "/bin/exit", "7"); r.Code != 7 {
			t.Errorf("exec ended with %d, want 7", r.Code)
		}
		if r := c.Run(args("run", "--rm", inPod("pod", "job"), shimtest.ProbeImage, "job", "exit", "42")...); r.Code != 42 {
			t.Errorf("a job ended with %d, want 42: %s", r.Code, r.Stderr)
		}
		if out := c.Must("task", "metrics", "side"); !strings.Contains(out, "memory") {
			t.Errorf("metrics: %s", out)
		}

		// containerd goes and comes: the pod is as before.
		c.Down()
		if n := len(c.Shims()); n != 2 {
			t.Errorf("with containerd %d processes of the shim have ended", 2-n)
		}
		c.Up()
		if out := c.Must("task", "exec", "--exec-id", "e3", "side", "/bin/echo", "again"); out != "again\n" {
			t.Errorf("exec says %q after containerd was started again", out)
		}
		for _, id := range []string{"side", "pod"} {
			c.Must("task", "kill", "--signal", "SIGTERM", id)
			c.Remove(id)
		}
		c.Clean()
	})
}

// Whichever of a pod's processes is killed, the pod ends, and another does not.
func TestKilledShim(t *testing.T) {
	shimtest.Each(t, func(t *testing.T, c *shimtest.Containerd) {
		c.Import("default", shimtest.ProbeImage, shimtest.Probe(t))
		c.Must(args("run", "-d", inPod("other", ""), shimtest.ProbeImage, "other", "pause")...)
		others := c.Shims()
		for i := range 2 {
			id := fmt.Sprint("pod", i)
			c.Must(args("run", "-d", inPod(id, ""), shimtest.ProbeImage, id, "pause")...)
			var own []shimtest.Process
			for _, p := range c.Shims() {
				if !strings.Contains(fmt.Sprint(others), fmt.Sprintf("{%d ", p.PID)) {
					own = append(own, p)
				}
			}
			if len(own) != 2 {
				t.Fatalf("the pod's processes are %v", own)
			}
			if err := syscall.Kill(own[i].PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			c.Stopped(id)
			c.Remove(id)
			c.Settled(others)
		}
		c.Must("task", "kill", "--signal", "SIGTERM", "other")
		c.Remove("other")
		c.Clean()
	})
}

// resident says what a process has in memory: of its own, and with what others
// share.
func resident(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	var parts []string
	for line := range strings.Lines(string(b)) {
		for _, k := range []string{"Rss:", "Pss:", "Private_Dirty:"} {
			if v, ok := strings.CutPrefix(line, k); ok {
				parts = append(parts, k+" "+strings.TrimSpace(v))
			}
		}
	}
	return strings.Join(parts, ", ")
}
