package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
)

// The unit is what was reviewed, and systemd finds nothing wrong with it.
func TestUnit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("drain_timeout = '90s'\ndomain = 'fn.example.com'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := config.Load(config.Input{File: file, Environ: []string{"HOME=/root", "SKEP_HOST_SERVICES=7090=127.0.0.1:7090,80=127.0.0.1:80"}, Flags: map[string]string{"listen": "0.0.0.0:80", "firecracker": "/opt/$HOME/fc"}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnit("/bin/true", r)
	if err != nil {
		t.Fatal(err)
	}
	u.Config = "/etc/skep/a b $x 100%.toml"
	text, err := u.text()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "skep.service")
	if *update {
		if err := os.WriteFile(golden, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != string(want) {
		t.Errorf("the unit has changed; `go test ./cmd/skep -run TestUnit -update` takes this:\n%s", text)
	}
	verifyUnit(t, text)
}

// verifyUnit has systemd say what is wrong with a unit.
func verifyUnit(t *testing.T, text []byte) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here to verify the unit: install the package systemd")
	}
	path := filepath.Join(t.TempDir(), unitName)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), unitName) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// systemctl is told what it should be, in order, and nobody else reads the unit.
func TestServiceVerbs(t *testing.T) {
	bin, units := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >> " + filepath.Join(bin, "calls") + "\n"
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"service", "status", "--unit-dir", units}, exitError, "skep service install"},
		{[]string{"service", "uninstall", "--unit-dir", units}, exitError, "there is no"},
		{[]string{"service", "install", "--show"}, exitOK, "ExecStart="},
		{[]string{"service", "install", "--unit-dir", units}, exitOK, "wrote "},
		{[]string{"service", "status", "--unit-dir", units}, exitOK, ""},
		{[]string{"service", "uninstall", "--unit-dir", units}, exitOK, "removed "},
	} {
		code, stdout, stderr := skep(t, "/run/skep/skep.sock", c.args...)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("skep %v: %d %s%s", c.args, code, stdout, stderr)
		}
		if c.says == "wrote " {
			if st, err := os.Stat(filepath.Join(units, unitName)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("the unit: %v, %v", st, err)
			}
		}
	}
	calls, _ := os.ReadFile(filepath.Join(bin, "calls"))
	want := "daemon-reload\nenable skep.service\nrestart skep.service\nstatus --no-pager skep.service\ndisable --now skep.service\ndaemon-reload\n"
	if string(calls) != want {
		t.Errorf("systemctl was called with %q, want %q", calls, want)
	}
}

func TestNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := notifySystemd([]string{"A=b", "NOTIFY_SOCKET=" + path}, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 32)
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := notifySystemd(nil, "READY=1"); err != nil {
		t.Errorf("nobody wants to know: %v", err)
	}
	if got := stopping(config.Config{DrainTimeout: api.Duration(90 * time.Second)}); got != "STOPPING=1\nEXTEND_TIMEOUT_USEC=120000000" {
		t.Errorf("the end is told as %q", got)
	}
}
