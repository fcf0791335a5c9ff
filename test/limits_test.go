package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestVMMsAreLimited looks up the limits of a running machine with the kernel.
func TestVMMsAreLimited(t *testing.T) {
	testenv.Need(t, "cgroup")
	d := start(t, "vmm_memory_mib=100", "vmm_pids=50", "vmm_cpus=2")
	d.hello("hello", "--memory-mib", "192")
	if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/"}); a.err != nil || a.status != 200 {
		t.Fatalf("%+v", a)
	}
	running, err := d.client.Instances(d.ctx(5*time.Second), "hello")
	if err != nil || len(running) == 0 {
		t.Fatalf("instances: %+v, %v", running, err)
	}
	for _, inst := range running {
		group := groupOf(t, inst.PID)
		for file, want := range map[string]string{
			"memory.max": fmt.Sprint((192 + 100) << 20), "pids.max": "51", "cpu.max": "300000 100000", "memory.swap.max": "0",
		} {
			got, err := os.ReadFile(filepath.Join(group, file))
			if errors.Is(err, os.ErrNotExist) && file == "memory.swap.max" {
				continue // a kernel without swapping
			}
			if err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s: %s is %q, %v; want %s", inst.ID, file, got, err, want)
			}
		}
		for _, file := range []string{"memory.current", "memory.peak", "memory.stat"} {
			b, _ := os.ReadFile(filepath.Join(group, file))
			t.Logf("%s %.300s", file, b)
		}
	}
}

// groupOf is the directory of a process's cgroup.
func groupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join("/sys/fs/cgroup", path)
		}
	}
	t.Fatalf("process %d is in no cgroup v2: %s", pid, b)
	return ""
}
