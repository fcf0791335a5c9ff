package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

func TestSetVerb(t *testing.T) {
	socket, n := fakeDaemon(t)
	file := filepath.Join(t.TempDir(), "secrets.env")
	text := "# of the shop\n\nDB_PASSWORD=hun ter=2\n  PADDED=x\nHOME\nNOT_SET_HERE\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(args ...string) {
		t.Helper()
		if code, _, stderr := skep(t, socket, args...); code != exitOK {
			t.Fatalf("skep %q: %d %s", args, code, stderr)
		}
	}
	must("set", "echo", "timeout=5s", "memory-mib=512", "snapshot.after_invocations=3", "env.LEVEL=a=b", "env.HOME", "--", "-v", "x=1")
	f, _ := n.Function("echo")
	if f.Timeout.D() != 5*time.Second || f.MemoryMiB != 512 || f.DiskMiB != 256 || f.Snapshot.AfterInvocations != 3 ||
		f.Env["LEVEL"] != "a=b" || f.Env["HOME"] != "/home/bee" || !slices.Equal(f.Args, []string{"-v", "x=1"}) || f.Image != "dir:/echo" {
		t.Errorf("set: %+v", f)
	}
	must("set", "echo", "--env-file", file, "--unset", "env.LEVEL", "--unset", "timeout", "-e", "PADDED=y")
	f, _ = n.Function("echo")
	if f.Env["DB_PASSWORD"] != "hun ter=2" || f.Env["PADDED"] != "y" || f.Env["HOME"] != "/home/bee" || len(f.Env) != 3 || f.Timeout.D() != time.Minute || f.MemoryMiB != 512 {
		t.Errorf("from a file: %+v", f)
	}
	must("rollback", "echo")
	if f, _ = n.Function("echo"); f.Env["LEVEL"] != "a=b" || f.Timeout.D() != 5*time.Second {
		t.Errorf("rolled back: %+v", f)
	}
	_, out, _ := skep(t, socket, "revisions", "echo")
	if !strings.Contains(out, "rollback to") || !strings.Contains(out, "set env.DB_PASSWORD") || strings.Contains(out, "hun ter") {
		t.Errorf("revisions:\n%s", out)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"set", "echo"}, exitUsage, "nothing to change"},
		{[]string{"set", "echo", "timeot=5s"}, exitUsage, "timeot"},
		{[]string{"set", "echo", "timeout"}, exitUsage, "timeout=VALUE"},
		{[]string{"set", "echo", "timeout=5"}, exitUsage, "unit"},
		{[]string{"set", "echo", "memory_mib=x"}, exitUsage, "whole number"},
		{[]string{"set", "echo", "snapshot.off=maybe"}, exitUsage, "true or false"},
		{[]string{"set", "echo", "revision=7"}, exitUsage, "revision"},
		{[]string{"set", "echo", "env.NONE"}, exitUsage, "no such variable"},
		{[]string{"set", "echo", "--unset", "nope"}, exitUsage, "nope"},
		{[]string{"set", "echo", "memory_mib=1"}, exitError, "64"},
		{[]string{"set", "none", "timeout=5s"}, exitNotFound, "none"},
		{[]string{"rollback", "echo", "first"}, exitUsage, "first"},
		{[]string{"rollback", "none"}, exitNotFound, "none"},
		{[]string{"revisions", "none"}, exitNotFound, "none"},
	} {
		if code, _, stderr := skep(t, socket, c.args...); code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("skep %q: %d %s, want %d and %q", c.args, code, stderr, c.code, c.says)
		}
	}
}

// A deploy of what exists keeps what it does not name; a file and --reset keep
// nothing.
func TestRedeployKeepsSettings(t *testing.T) {
	socket, n := fakeDaemon(t)
	deploy := func(args ...string) api.Function {
		t.Helper()
		if code, _, stderr := skep(t, socket, append([]string{"deploy"}, args...)...); code != exitOK {
			t.Fatalf("skep deploy %q: %d %s", args, code, stderr)
		}
		f, _ := n.Function("shop")
		return f
	}
	deploy("localhost:5000/shop:v1", "-e", "DB=hunter2", "--timeout", "5s", "--snapshot-after", "4", "--policy", "reap", "--", "-v")
	f := deploy("localhost:5000/shop:v2", "-e", "LEVEL=2", "--keep-alive", "7s")
	if f.Image != "localhost:5000/shop:v2" || f.Env["DB"] != "hunter2" || f.Env["LEVEL"] != "2" || f.Timeout.D() != 5*time.Second ||
		f.KeepAlive.D() != 7*time.Second || f.Snapshot.AfterInvocations != 4 || f.MemoryPolicy != "reap" || !slices.Equal(f.Args, []string{"-v"}) {
		t.Errorf("kept %+v", f)
	}
	if f = deploy("localhost:5000/shop:v2", "--snapshot-after", "0", "--policy", "mmap", "--no-snapshot"); f.Snapshot != (api.SnapshotRule{Off: true}) || f.MemoryPolicy != "mmap" {
		t.Errorf("named %+v", f)
	}
	if f = deploy("localhost:5000/shop:v3", "--reset"); len(f.Env) != 0 || f.Timeout.D() != time.Minute || len(f.Args) != 0 {
		t.Errorf("reset %+v", f)
	}
}

// Values are shown to who asks for them, and are in no error.
func TestSecretsAreNotShown(t *testing.T) {
	socket, _ := fakeDaemon(t)
	bad := filepath.Join(t.TempDir(), "bad.env")
	if err := os.WriteFile(bad, []byte("A=1\nthe hunter2=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"deploy", "x", "-e", "DB=hunter2", "--json"},
		{"inspect", "x"}, {"inspect", "x", "--json"}, {"ls", "--json"}, {"revisions", "x", "--json"},
		{"deploy", "x", "--env-file", bad}, {"deploy", "x", "-e", "=hunter2"}, {"deploy", "x", "-e", "a b=hunter2"},
		{"set", "x", "env.PORT", "env.=hunter2"}, {"deploy", "x", "-e", "DB=hunter2\x00"},
	} {
		if _, stdout, stderr := skep(t, socket, args...); strings.Contains(stdout+stderr, "hunter2") {
			t.Errorf("skep %q: %s%s", args, stdout, stderr)
		}
	}
	if code, out, stderr := skep(t, socket, "inspect", "x", "--show-env"); code != exitOK || !strings.Contains(out, "DB=hunter2") {
		t.Errorf("asked for: %d %s%s", code, out, stderr)
	}
}

// A variable that is only named does not show in the arguments of the process.
func TestEnvOfTheCaller(t *testing.T) {
	socket, n := fakeDaemon(t)
	var out, errs bytes.Buffer
	c := &cli{in: strings.NewReader(""), out: &out, err: &errs, environ: []string{"SKEP_SOCKET=" + socket, "HOME=/home/bee", "TOKEN=hunter2"}}
	if code := c.run(t.Context(), []string{"deploy", "shop", "-e", "TOKEN"}); code != exitOK {
		t.Fatal(errs.String())
	}
	if f, _ := n.Function("shop"); f.Env["TOKEN"] != "hunter2" {
		t.Errorf("%+v", f)
	}
}
