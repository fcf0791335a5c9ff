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
		// Who serves in the guest is itself, at its port; nobody serves at the last one.
		for url, want := range map[string]string{"http://127.0.0.1:8080/hostname": "three", "http://127.0.0.1:9000/": "hello", "http://127.0.0.1:9001/": ""} {
			if r := p.Try("exec", app, "/bin/get", url); strings.TrimSpace(r.Stdout) != want || (r.Code == 0) != (want != "") {
				t.Errorf("the microVM gets %q from %s (%d, %s), want %q", r.Stdout, url, r.Code, r.Stderr, want)
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

// An update of a container changes what processor time its VMM gets; what would change
// the size of its guest is refused.
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
		for _, refused := range []struct {
			flags []string
			want  string
		}{
			{[]string{"--memory", fmt.Sprint(1 << 30)}, "its limit of memory is to be 1024 MiB in place of none"},
			{[]string{"--memory", fmt.Sprint(64 << 20)}, "its limit of memory is to be 64 MiB in place of none"},
			{[]string{"--cpu-period", "50000", "--cpu-quota", "60000"}, "its microVM has 1 vCPUs as long as it runs"},
		} {
			if r := p.Try(append(append([]string{"update"}, refused.flags...), id)...); r.Code == 0 || !strings.Contains(r.Stderr, refused.want) {
				t.Errorf("update %q: %d %s%s, want it refused with %q", refused.flags, r.Code, r.Stdout, r.Stderr, refused.want)
			}
		}
		if quota, period := cpuLimit(t, c.VMM(id)); quota != "30000" || period != "50000" {
			t.Errorf("after what was refused its VMM has %s of %s µs", quota, period)
		}
		if out := p.Call("exec", id, "/bin/echo", "x"); out != "x" {
			t.Errorf("exec says %q after it", out)
		}
	})
}

// The CRI's counters of a container are its VMM's, with what its guest holds.
func TestPodStats(t *testing.T) {
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		p := shimtest.CRI(t, c)
		pod := p.Pod("measured", nil)
		defer pod.Remove()
		id := pod.Run("app", "hold", "100")
		for end := time.Now().Add(p.Limit(time.Minute)); !strings.Contains(p.Call("logs", id), "holds 100"); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it does not say that it holds its memory")
			}
		}
		var v struct {
			Stats []struct {
				CPU struct {
					UsageCoreNanoSeconds struct{ Value string } `json:"usageCoreNanoSeconds"`
				} `json:"cpu"`
				Memory struct {
					WorkingSetBytes struct{ Value string } `json:"workingSetBytes"`
				} `json:"memory"`
			} `json:"stats"`
		}
		out := p.Call("stats", "-o", "json", id)
		if err := json.Unmarshal([]byte(out), &v); err != nil || len(v.Stats) != 1 {
			t.Fatalf("stats of one container: %v: %s", err, out)
		}
		memory, err := strconv.ParseInt(v.Stats[0].Memory.WorkingSetBytes.Value, 10, 64)
		if err != nil || memory < 100<<20 || memory > (256+100)<<20 { // a guest of 256, and its VMM
			t.Errorf("what holds 100 MiB has a working set of %d MiB, %v", memory>>20, err)
		}
		if cpu, err := strconv.ParseInt(v.Stats[0].CPU.UsageCoreNanoSeconds.Value, 10, 64); err != nil || cpu <= 0 {
			t.Errorf("it has used %d ns of processor time, %v", cpu, err)
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
