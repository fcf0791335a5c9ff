package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/shim/shimtest"
)

// tighten leaves a process's cgroup a few MiB of memory more than it has now.
func tighten(t *testing.T, pid int) {
	t.Helper()
	dir := cgroupDir("memory", cgroupOf(t, pid, "memory"))
	b, err := os.ReadFile(filepath.Join(dir, either("memory.current", "memory.usage_in_bytes")))
	if err != nil {
		t.Fatal(err)
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, either("memory.max", "memory.limit_in_bytes")), fmt.Append(nil, now+8<<20), 0); err != nil {
		t.Fatal(err)
	}
}

// A container that wants more memory than its limit is told of as such, also where
// its guest has more, and so is a VMM whose cgroup runs out of it.
func TestOutOfMemory(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		events := c.Events()
		r := c.Run(args("run", "--rm", vm, "--memory-limit", "33554432", shimtest.ProbeImage, "hungry", "eat", "60")...)
		if r.Code != 137 {
			t.Errorf("it ended with %d, want 137: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		c.Starts("large", args("run", "-d", vm, shimtest.ProbeImage, "large", "serve", "8080")...)
		tighten(t, c.VMM("large"))
		c.Run("task", "exec", "--exec-id", "e", "large", "/bin/eat", "128") // which ends with the guest
		if code := c.Delete("large"); code != "137" {
			t.Errorf("the VMM ended with %s, want 137", code)
		}
		for _, id := range []string{"hungry", "large"} {
			for _, topic := range []string{"/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"} {
				if !events.Saw(topic, id) {
					t.Errorf("there was no event %s of %s in\n%s", topic, id, events)
				}
			}
		}
		events.Close()
	})
}

// The CRI calls both OOMKilled.
func TestPodOutOfMemory(t *testing.T) {
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		p := shimtest.CRI(t, c)
		pod := p.Pod("hungry", map[string]string{"skep.dev/container": "app"})
		defer pod.Remove()
		ended := func(what, id string) {
			t.Helper()
			var v struct {
				Status struct{ State, Reason string }
			}
			for end := time.Now().Add(c.Limit(time.Minute)); time.Now().Before(end) && v.Status.State != "CONTAINER_EXITED"; time.Sleep(100 * time.Millisecond) {
				if err := json.Unmarshal([]byte(p.Call("inspect", "-o", "json", id)), &v); err != nil {
					t.Fatal(err)
				}
			}
			if v.Status.Reason != "OOMKilled" {
				t.Errorf("%s is %+v, want OOMKilled\n%s", what, v.Status, c.Log())
			}
			p.Call("rm", id)
		}
		ended("a guest without memory", pod.Run("app", "eat", "1000"))
		id := pod.Run("app", "serve", "8080")
		tighten(t, c.VMM(id))
		p.Try("exec", id, "/bin/eat", "128")
		ended("a VMM without memory", id)
	})
}
