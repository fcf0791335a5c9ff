package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// A VMM is in the cgroup that containerd names, with its limits, and all of its
// guest's memory counts there.
func TestCgroup(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		parent := "/skep-" + filepath.Base(c.Dir)
		checkCgroup(t, c, func(id string) (name, at string) { return parent + "/" + id, parent + "/" + id })
		groups, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
		for _, dir := range append(groups, "/sys/fs/cgroup"+parent) {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
}

// So it is where systemd makes the cgroup.
func TestSystemdCgroup(t *testing.T) {
	testenv.Need(t, "systemd")
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		// As the CRI names it: a dash in a slice's name is a slice in another.
		const slice = "skeptest-pods.slice"
		defer stopSlice(t, "skeptest.slice")
		checkCgroup(t, c, func(id string) (name, at string) {
			return slice + ":cri-containerd:" + id, "/skeptest.slice/" + slice + "/cri-containerd-" + id + ".scope"
		})
	})
}

// stopSlice removes a slice of systemd's, and those in it: they stay when they are empty.
func stopSlice(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.Command("systemctl", "stop", name).CombinedOutput(); err != nil {
		t.Errorf("systemctl stop %s: %v: %s", name, err, out)
	}
}

// Without systemd the create call says that a cgroup of its cannot be.
func TestNoSystemd(t *testing.T) {
	eachVMWith(t, shimtest.Options{NoSystemd: true}, func(t *testing.T, c *shimtest.Containerd) {
		for _, kind := range [][]string{vm, inPod("pod", "")} {
			r := c.Run(args("run", "--rm", kind, "--cgroup", "system.slice:cri-containerd:none", shimtest.ProbeImage, "none", "true")...)
			if r.Code == 0 || !strings.Contains(r.Stderr, "systemd") || !strings.Contains(r.Stderr, "running on this host") && !strings.Contains(r.Stderr, "does not run on this host") {
				t.Errorf("%v: exit code %d, %s", kind, r.Code, r.Stderr)
			}
			if c.Run("container", "info", "none").Code == 0 {
				c.Must("container", "delete", "none")
			}
		}
	})
}

// checkCgroup has containers in cgroups; name is what containerd is told, at where
// that is below the mount points.
func checkCgroup(t *testing.T, c *shimtest.Containerd, named func(id string) (name, at string)) {
	t.Helper()
	where := func(id string, kind []string, limits ...string) string {
		t.Helper()
		name, at := named(id)
		c.Starts(id, args("run", "-d", kind, "--cgroup", name, limits, shimtest.ProbeImage, id, "pause")...)
		if got := cgroupOf(t, c.PID(id), "memory"); got != at {
			t.Errorf("%s is in cgroup %s, want %s", id, got, at)
		}
		return at
	}
	read := func(controller, at, file string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(cgroupDir(controller, at), file))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(b))
	}
	events := c.Events()
	at := where("vm", vm, "--memory-limit", fmt.Sprint(64<<20), "--cpus", "1.5")
	memory, cpu := read("memory", at, either("memory.max", "memory.limit_in_bytes")), read("cpu", at, either("cpu.max", "cpu.cfs_quota_us"))
	if n, err := strconv.Atoi(memory); err != nil || n <= 128<<20 || n > 1<<30 {
		t.Errorf("its limit of memory is %q: want that of a guest of 128 MiB and its VMM", memory)
	}
	if want := either("150000 100000", "150000"); cpu != want {
		t.Errorf("its limit of CPU is %q, want %q", cpu, want)
	}
	if used, anonymous := usage(t, c, "vm"), anonymous(t, c.PID("vm")); used < anonymous/4*3 || anonymous == 0 {
		t.Errorf("its cgroup has %d bytes of memory, its VMM %d: want no less", used, anonymous)
	} else {
		t.Logf("its cgroup has %d MiB of memory, its VMM %d", used>>20, anonymous>>20)
	}

	where("pod", inPod("pod", "")) // runc's
	where("app", inPod("pod", "app"))
	end(c, "app", "pod")

	// Another limit would not be taken by version 1 while it is exceeded.
	if unified() {
		if err := os.WriteFile(filepath.Join(cgroupDir("memory", at), "memory.max"), []byte("1048576"), 0); err != nil {
			t.Error(err)
		}
		if code := c.Delete("vm"); code != "137" {
			t.Errorf("after its VMM has got too little memory it has ended with %q, want 137", code)
		}
		if !events.Saw("/tasks/oom", "vm") {
			t.Errorf("there was no event of it in\n%s\n%s", events, c.Log())
		}
	} else {
		end(c, "vm")
	}
	events.Close()
	for _, id := range []string{"vm", "pod", "app"} {
		_, at := named(id)
		for _, controller := range []string{"memory", "cpu", "freezer"} {
			if _, err := os.Stat(cgroupDir(controller, at)); !os.IsNotExist(err) {
				t.Errorf("left: cgroup %s (%v)", cgroupDir(controller, at), err)
			}
		}
	}
}

// cgroupsLeft are the cgroups of a container, below containerd's namespace.
func cgroupsLeft(id string) (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/default/", "/sys/fs/cgroup/*/default/"} {
		found, _ := filepath.Glob(pattern + id)
		dirs = append(dirs, found...)
	}
	return dirs
}

// unified says that the host has version 2 of cgroups alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// either is the one of version 2 or the one of version 1.
func either(v2, v1 string) string {
	if unified() {
		return v2
	}
	return v1
}

func cgroupDir(controller, at string) string {
	return filepath.Join("/sys/fs/cgroup", either("", controller), at)
}

// cgroupOf is the cgroup of a process, below the controller's mount point.
func cgroupOf(t *testing.T, pid int, controller string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // 4:memory:/path, 0::/path
		if len(f) == 3 && f[1] == either("", controller) {
			return f[2]
		}
	}
	t.Fatalf("process %d has no cgroup of %s:\n%s", pid, controller, b)
	return ""
}

// usage is the memory of a container, as containerd's clients see it.
func usage(t *testing.T, c *shimtest.Containerd, id string) uint64 {
	t.Helper()
	out := c.Must("task", "metrics", "--format", "json", id)
	var v2 struct {
		Memory struct {
			Usage json.RawMessage `json:"usage"`
		} `json:"memory"`
	}
	if err := json.Unmarshal([]byte(out), &v2); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var n uint64
	if err := json.Unmarshal(v2.Memory.Usage, &n); err == nil {
		return n
	}
	var v1 struct {
		Usage uint64 `json:"usage"`
	}
	if err := json.Unmarshal(v2.Memory.Usage, &v1); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v1.Usage
}

// anonymous is memory of a process that is nobody else's: of a VMM, its guest's.
func anonymous(t *testing.T, pid int) uint64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			return kib << 10
		}
	}
	t.Fatalf("process %d has no memory:\n%s", pid, b)
	return 0
}
