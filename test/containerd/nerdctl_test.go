package containerd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// nerdctl finds the program, as shimtest finds crictl.
func nerdctl(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("nerdctl")
	if err != nil {
		path = filepath.Join(os.Getenv(testenv.ContainerdEnv), "nerdctl")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs nerdctl: put it on the PATH or into the directory that %s names (CGO_ENABLED=0 go build ./cmd/nerdctl in its repository)", testenv.ContainerdEnv)
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs plugins of CNI: apt-get install --no-install-recommends containernetworking-plugins")
	}
	return path
}

// What people type with nerdctl does what it does under runc.
func TestNerdctl(t *testing.T) {
	program := nerdctl(t)
	for _, runtime := range []string{"io.containerd.runc.v2", "io.containerd.skep.v2"} {
		t.Run(runtime, func(t *testing.T) { testNerdctl(t, program, runtime) })
	}
}

func testNerdctl(t *testing.T, program, runtime string) {
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		command := func(args ...string) *exec.Cmd {
			return c.Command(program, append([]string{"--address", c.Address, "--cni-path", "/usr/lib/cni", "--cni-netconfpath", filepath.Join(c.Dir, "nerdctl-net.d"),
				"--data-root", filepath.Join(c.Dir, "nerdctl"), "--cgroup-manager", "cgroupfs"}, args...)...)
		}
		must := func(args ...string) string {
			t.Helper()
			r := c.Finish(command(args...))
			if r.Code != 0 {
				t.Fatalf("nerdctl %s: %d: %s%s\n%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr, c.Log())
			}
			return strings.TrimSpace(r.Stdout)
		}
		running := func(args ...string) []string {
			return append([]string{"run", "--runtime", runtime, "--pull", "never"}, args...)
		}
		volume := filepath.Join(c.Dir, "volume")
		if err := os.Mkdir(volume, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(volume, "file"), []byte("from the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			flags, command []string
			want           string
		}{
			{nil, []string{"echo", "hi"}, "hi"},
			{[]string{"-e", "A=b c", "-m", "256m", "--cpus", "1"}, []string{"env"}, "A=b c"},
			{[]string{"-v", volume + ":/v:ro"}, []string{"cat", "/v/file"}, "from the host"},
			{[]string{"-w", "/tmp", "-u", "1000", "--hostname", "it"}, []string{"hostname"}, "it"},
		} {
			if out := must(append(running(append([]string{"--rm"}, tt.flags...)...), append([]string{shimtest.ProbeImage}, tt.command...)...)...); !strings.Contains(out, tt.want) {
				t.Errorf("%q %q says %q, want %q", tt.flags, tt.command, out, tt.want)
			}
		}
		if r := c.Finish(command(running("--rm", shimtest.ProbeImage, "exit", "42")...)); r.Code != 42 {
			t.Errorf("exit 42 ends with %d: %s", r.Code, r.Stderr)
		}
		tty := command(running("--rm", "-it", shimtest.ProbeImage, "tty")...)
		master, err := pty.StartWithSize(tty, &pty.Winsize{Rows: 30, Cols: 90})
		if err != nil {
			t.Fatal(err)
		}
		var seen bytes.Buffer
		_, _ = seen.ReadFrom(master) // ends with an error when the other end is closed
		master.Close()
		if err := tty.Wait(); err != nil || !strings.Contains(seen.String(), "true true true") {
			t.Errorf("with a terminal: %v, %q", err, seen.String())
		}

		must(running("-d", "--name", "web", "-p", "8080:80", shimtest.ProbeImage, "serve", "80")...)
		if out := must("ps"); !strings.Contains(out, "web") || !strings.Contains(out, "8080->80") {
			t.Errorf("nerdctl ps: %s", out)
		}
		if out := eventually(c, func() shimtest.Result { return c.Finish(c.Probe("get", "http://127.0.0.1:8080/")) }); out != "hello" {
			t.Errorf("its port on the host answers %q", out)
		}
		logs := ""
		for end := time.Now().Add(c.Limit(20 * time.Second)); time.Now().Before(end) && !strings.Contains(logs, "serving at 80"); time.Sleep(100 * time.Millisecond) {
			logs = must("logs", "web")
		}
		if !strings.Contains(logs, "serving at 80") {
			t.Errorf("its log is %q", logs)
		}
		if out := must("exec", "web", "/bin/echo", "from", "the", "guest"); out != "from the guest" {
			t.Errorf("exec says %q", out)
		}
		must("stop", "-t", "3", "web")
		must("rm", "web")
	})
}
