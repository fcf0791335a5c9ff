package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/shim/shimtest"
)

// A pod of three containers, one of which is a microVM: they reach each other at
// 127.0.0.1, the pod is reached at its address, logs and exec are the CRI's.
func TestPod(t *testing.T) {
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		p := shimtest.CRI(t, c)
		pod := p.Pod("three", map[string]string{"skep.dev/container": "app", "skep.dev/port": "8080"})
		side := pod.Run("side", "serve", "9000")
		app := pod.Run("app", "serve", "8080")
		other := pod.Run("other", "pause")
		checkVMMs(t, c, p.CgroupParent(), app)
		for _, tt := range []struct{ url, want string }{{"http://127.0.0.1:8080/hostname", "three"}, {"http://127.0.0.1:9000/", "hello"}} {
			if out := eventually(c, func() shimtest.Result { return p.Try("exec", other, "/bin/get", tt.url) }); out != tt.want {
				t.Errorf("a sidecar gets %q from %s, want %q", out, tt.url, tt.want)
			}
		}
		for _, port := range []string{"8080", "9000"} {
			if out := eventually(c, func() shimtest.Result { return p.Probe("get", "http://"+pod.IP()+":"+port+"/") }); out != "hello" {
				t.Errorf("from outside port %s answers %q", port, out)
			}
		}
		if out := p.Call("exec", app, "/bin/echo", "from", "the", "guest"); out != "from the guest" {
			t.Errorf("exec says %q", out)
		}
		// What it wrote before it was ready is in the log of the first of its kind.
		eventually(c, func() shimtest.Result { return p.Probe("get", "http://"+pod.IP()+":8080/log/asked") })
		if out := p.Call("logs", app); !strings.Contains(out, "asked") {
			t.Errorf("its log is %q", out)
		}
		p.Call("stop", "--timeout", "1", app)
		if out := p.Call("inspect", "-o", "json", app); !strings.Contains(out, "CONTAINER_EXITED") {
			t.Errorf("stopped, it is %s", out)
		}
		if out := p.Call("exec", side, "/bin/echo", "x"); out != "x" {
			t.Errorf("a sidecar says %q after the microVM has ended", out)
		}
		pod.Remove()

		pod = p.Pod("two", nil)
		pod.Run("first", "pause")
		second := pod.Create("second", "pause")
		if r := p.Try("start", strings.TrimSpace(second.Stdout)); r.Code == 0 || !strings.Contains(r.Stderr, "skep.dev/container") {
			t.Errorf("a second container of a pod without the annotation: %d %s", r.Code, r.Stderr)
		}
		pod.Remove()
	})
}

// checkVMMs wants one VMM, in the cgroup of a container below a pod's parent.
func checkVMMs(t *testing.T, c *shimtest.Containerd, parent, id string) {
	t.Helper()
	n := 0
	for _, p := range c.Processes() {
		if p.Name != "qemu-system-x86_64" && p.Name != "firecracker" {
			continue
		}
		n++
		if at := cgroupOf(t, p.PID, "memory"); !strings.Contains(at, parent+"/") || !strings.Contains(at, id) {
			t.Errorf("the VMM is in cgroup %s: want one of container %s below %s", at, id, parent)
		}
	}
	if n != 1 {
		t.Errorf("%d VMMs are among %v, want 1", n, c.Processes())
	}
}

// An update of a container changes what processor time its VMM gets; memory that a
// guest cannot get is refused.
func TestPodUpdate(t *testing.T) {
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		p := shimtest.CRI(t, c)
		pod := p.Pod("updated", nil)
		defer pod.Remove()
		id := pod.Run("app", "pause")
		p.Call("update", "--cpu-period", "50000", "--cpu-quota", "30000", id)
		if quota, period := cpuLimit(t, c.VMM(id)); quota != "30000" || period != "50000" {
			t.Errorf("after the update its VMM has %s of %s µs", quota, period)
		}
		p.Call("update", "--memory", fmt.Sprint(64<<20), id) // what is less is not taken away
		if r := p.Try("update", "--memory", fmt.Sprint(1<<30), id); r.Code == 0 || !strings.Contains(r.Stderr, "the guest has 256 MiB of memory, and cannot get more while it runs") {
			t.Errorf("more memory: %d %s%s", r.Code, r.Stdout, r.Stderr)
		}
		if out := p.Call("exec", id, "/bin/echo", "x"); out != "x" {
			t.Errorf("exec says %q after it", out)
		}
	})
}

// cpuLimit reads a process's, from the kernel.
func cpuLimit(t *testing.T, pid int) (quota, period string) {
	t.Helper()
	dir := cgroupDir("cpu", cgroupOf(t, pid, "cpu"))
	var words []string
	for _, name := range strings.Fields(either("cpu.max", "cpu.cfs_quota_us cpu.cfs_period_us")) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, strings.Fields(string(b))...)
	}
	return words[0], words[1]
}
