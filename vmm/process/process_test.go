package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
)

func shell(t *testing.T, script string, change func(*Spec)) (*Process, error) {
	t.Helper()
	spec := Spec{Path: "/bin/sh", Args: []string{"-c", script}, Host: vmm.Host{ID: "a", Dir: t.TempDir(), Env: []string{"MARK=1"}}}
	if change != nil {
		change(&spec)
	}
	p, err := Start(spec)
	if err == nil {
		t.Cleanup(func() {
			if err := p.Kill(); err != nil {
				t.Errorf("Kill: %v", err)
			}
		})
	}
	return p, err
}

func TestErrSaysHowItEndedAndWhatItSaid(t *testing.T) {
	testenv.NoLeaks(t)
	for _, test := range []struct{ script, want string }{
		{"echo the reason >&2; exit 3", "sh ended: exit status 3; its last words: the reason"},
		{"exit 0", "sh ended: exit status 0"},
		{"kill -9 $$", "sh ended: signal: killed"},
		{`[ "$MARK" = 1 ] && [ -z "$HOME" ] && exit 9`, "exit status 9"},
	} {
		p, err := shell(t, test.script, nil)
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", test.script, err, test.want)
		}
	}
}

func TestStderrIsBounded(t *testing.T) {
	p, err := shell(t, "yes 0123456789 | head -c 1000000 >&2; echo the end >&2; exit 1", nil)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	got := p.Err().Error()
	if len(got) > tailSize+200 || !strings.HasSuffix(got, "the end") {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-40):])
	}
}

func TestKill(t *testing.T) {
	testenv.NoLeaks(t)
	p, err := shell(t, "exec sleep 1000", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Errorf("Err of a running process: %v", err)
	}
	for range 2 {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	<-p.Done()
	if err := p.Err(); err != nil {
		t.Errorf("Err after Kill: %v", err)
	}
}

func TestStartErrorsLeaveNothing(t *testing.T) {
	testenv.NoLeaks(t)
	injected := errors.New("not today")
	for name, change := range map[string]func(*Spec){
		"no program":   func(s *Spec) { s.Path = "/nonexistent/program" },
		"no directory": func(s *Spec) { s.Host.Dir = "/nonexistent" },
		"no namespace": func(s *Spec) { s.Host.NetNS = "/nonexistent/netns" },
		"no cgroup":    func(s *Spec) { s.Host.Limits.CgroupRoot = "/nonexistent/cgroup" },
		"own start":    func(s *Spec) { s.Start = func(*exec.Cmd, func() error) error { return injected } },
	} {
		if _, err := shell(t, "exit 0", change); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCgroup(t *testing.T) {
	root := cgroup.Root()
	if root == "" {
		t.Skip("no writable cgroup v2 mount; run as root: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(root, fmt.Sprintf("skep-process-test-%d", os.Getpid()))
	t.Cleanup(func() { os.Remove(dir) })
	p, err := shell(t, "sleep 1000 & echo up; wait", func(s *Spec) {
		s.Host.Limits = vmm.Limits{CgroupRoot: dir, MemoryMiB: 32, PIDs: 10, CPUs: 0.5}
		s.MemoryMiB, s.VCPUs = 64, 2
	})
	if err != nil {
		t.Fatal(err)
	}
	cg, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if err != nil || !strings.Contains(string(cg), filepath.Base(dir)+"/a\n") {
		t.Errorf("its cgroup: %s, %v", cg, err)
	}
	for file, want := range map[string]string{"memory.max": "100663296", "pids.max": "12", "cpu.max": "250000 100000"} {
		got, err := os.ReadFile(filepath.Join(dir, "a", file))
		if errors.Is(err, os.ErrNotExist) {
			t.Logf("no controller here for %s; `go run ./testbed test ./vmm/process` has a host with all", file)
		} else if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v; want %s", file, got, err, want)
		}
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !os.IsNotExist(err) {
		t.Errorf("its cgroup is left: %v", err)
	}
}

// A process that is killed for its group's limit of memory says so.
func TestOutOfMemoryIsTold(t *testing.T) {
	testenv.Need(t, "cgroup")
	dir := filepath.Join(cgroup.Root(), fmt.Sprintf("skep-process-test-%d", os.Getpid()))
	t.Cleanup(func() { os.Remove(dir) })
	p, err := shell(t, "exec dd if=/dev/zero of=/dev/null bs=256M count=1", func(s *Spec) {
		s.Host.Limits = vmm.Limits{CgroupRoot: dir, MemoryMiB: 8}
		s.MemoryMiB = 8
	})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed: it needed more memory") || !strings.Contains(err.Error(), "vmm_memory_mib") {
		t.Errorf("%v; want that it was out of memory", err)
	}
}

// A process dumps no core, which would hold the guest's memory, and writes no
// file that is much larger than that.
func TestLimits(t *testing.T) {
	p, err := shell(t, "exec sleep 1000", func(s *Spec) { s.MemoryMiB, s.MaxFiles = 128, 77 })
	if err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(string(limits)), " ")
	for _, want := range []string{"Max core file size 0 0 ", "Max file size 201326592 201326592 ", "Max open files 77 77 "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, limits)
		}
	}
}

// A start on the main thread is done again on another.
func TestStartAvoidsTheMainThread(t *testing.T) {
	calls := 0
	start := func(_ *exec.Cmd, enter func() error) error {
		if calls++; calls == 1 {
			return fmt.Errorf("forking: %w", errMainThread)
		}
		return enter()
	}
	if err := startIn("", nil, start); err != nil || calls != 2 {
		t.Errorf("%d calls, %v; want two", calls, err)
	}
}

// Whoever starts a process hears of it before it is handed out, and can undo it.
func TestStarted(t *testing.T) {
	testenv.NoLeaks(t)
	told := 0
	p, err := shell(t, "exec sleep 1000", func(s *Spec) { s.Host.Started = func(pid int) error { told = pid; return nil } })
	if err != nil {
		t.Fatal(err)
	}
	if told != p.PID() {
		t.Errorf("it was told of process %d, want %d", told, p.PID())
	}
	want := errors.New("no place for it")
	_, err = shell(t, "exec sleep 1000", func(s *Spec) { s.Host.Started = func(pid int) error { told = pid; return want } })
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", told)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process %d is left (%v)", told, err)
	}
}
