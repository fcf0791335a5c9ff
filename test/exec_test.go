package test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestExec runs commands in a clone, as a user does, and copies files.
func TestExec(t *testing.T) {
	testenv.Need(t, "mmdebstrap")
	d := start(t)
	d.mustCLI("deploy", "functions/helloworld", "--name", "hello", "--keep-alive", "2s")
	d.gone("hello")
	d.mustCLI("set", "hello", "keep_alive=10m")
	if _, err := d.cli("exec", "hello", "--", "python3", "-V"); err == nil || !strings.Contains(err.Error(), "no instance is running") {
		t.Errorf("where nothing runs: %v", err)
	}
	if a := d.mustGet("hello", "/"); a.header.Get(api.HeaderStart) != string(api.StartRestore) {
		t.Fatalf("it was not restored: %v", a.header)
	}
	run := func(stdin []byte, args ...string) (string, int) {
		t.Helper()
		cmd := d.command(append([]string{"exec"}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"hello", "--", "python3", "-c", "print('out'); exit(42)"}, "out\n", 42},
		{[]string{"hello", "--", "python3", "-c", "import os; os.kill(os.getpid(), 9)"}, "", 137},
		{[]string{"hello", "--", "/none"}, "", 127},
		{[]string{"hello", "--", "/etc/hosts"}, "", 126},
		{[]string{"-e", "A=7", "hello", "--", "python3", "-c", "import os; print(os.environ['A'])"}, "7\n", 0},
	} {
		if out, code := run(nil, c.args...); out != c.out || code != c.code {
			t.Errorf("%q: %q, %d; want %q, %d", c.args, out, code, c.out, c.code)
		}
	}
	big := make([]byte, 8<<20)
	rand.Read(big)
	if out, code := run(big, "-i", "hello", "--", "python3", "-c", "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"); code != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(big) {
		t.Errorf("8 MiB through cat: %d bytes, exit code %d", len(out), code)
	}
	// A client that is killed takes its command with it.
	cmd := d.command("exec", "hello", "--", "python3", "-c", "import time; open('/tmp/begun', 'w').write('begun\\n'); time.sleep(54321)")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command runs", time.Minute, func() error {
		if out, _ := run(nil, "hello", "--", "python3", "-c", "print(open('/tmp/begun').read(), end='')"); out != "begun\n" {
			return errors.New(out)
		}
		return nil
	})
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "the command ends with its client", time.Minute, func() error {
		if out, _ := run(nil, "hello", "--", "python3", "-c", "import glob; print([open(f).read() for f in glob.glob('/proc/[0-9]*/cmdline')])"); strings.Contains(out, "54321") {
			return errors.New(out)
		}
		return nil
	})
	given := filepath.Join(t.TempDir(), "given")
	if err := os.WriteFile(given, []byte("given"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.mustCLI("cp", given, "hello:/srv/made/")
	if out, code := run(nil, "hello", "--", "python3", "-c", "print(open('/srv/made/given').read(), end='')"); out != "given" || code != 0 {
		t.Errorf("copied in: %q, %d", out, code)
	}
	to := filepath.Join(t.TempDir(), "begun")
	d.mustCLI("cp", "hello:/tmp/begun", to)
	if b, err := os.ReadFile(to); err != nil || string(b) != "begun\n" {
		t.Errorf("copied out: %q, %v", b, err)
	}
	d.mustGet("hello", "/")
}
