package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// root makes a parent group of this test's own.
func root(t *testing.T) string {
	t.Helper()
	r := Root()
	if r == "" {
		if os.Getenv("SKEP_REQUIRE") == "all" {
			t.Fatal("no writable cgroup v2 mount")
		}
		t.Skip("no writable cgroup v2 mount; run as root: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(r, fmt.Sprintf("skep-test-%d", os.Getpid()))
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Errorf("left behind: %v", err)
		}
	})
	return dir
}

func TestGroupHoldsAndKillsItsProcesses(t *testing.T) {
	g, err := Create(root(t), "a", Limits{MemoryBytes: 64 << 20, PIDs: 16, CPUs: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("limits that hold on this host: %v", g.Applied)
	for _, c := range g.Applied {
		file := c + ".max"
		if got, err := os.ReadFile(filepath.Join(g.Dir(), file)); err != nil || strings.HasPrefix(string(got), "max") {
			t.Errorf("%s is %q, %v", file, got, err)
		}
	}
	f, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo up; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	procs, err := os.ReadFile(filepath.Join(g.Dir(), "cgroup.procs"))
	if err != nil || len(strings.Fields(string(procs))) != 2 {
		t.Errorf("processes in the group: %q, %v; want two", procs, err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Errorf("second Remove: %v", err)
	}
}

func TestRemoveKillsWhatIsLeft(t *testing.T) {
	dir := root(t)
	if _, err := Create(dir, "b", Limits{}); err != nil {
		t.Fatal(err)
	}
	g, err := Orphan(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	<-done
}

func TestCreateRefuses(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b"} {
		if _, err := Create("/sys/fs/cgroup", name, Limits{}); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	dir := t.TempDir()
	if _, err := Create(dir, "a", Limits{}); err == nil || !strings.Contains(err.Error(), "cgroup v2") {
		t.Errorf("a directory outside cgroup v2: %v", err)
	}
	if _, err := Orphan(dir); err == nil {
		t.Error("Orphan took a directory outside cgroup v2")
	}
}
