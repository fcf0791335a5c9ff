package install

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// mirrorEnv names the package source of roots, where it is not Debian's own.
const mirrorEnv = "SKEP_DEBIAN_MIRROR"

// before is what a root has before skep: what the tests look with, and all that skep
// depends on or recommends, so that nothing but skep comes and goes.
var before = []string{"systemd", "dbus", "man-db", "bash-completion", "zsh", "fish", "procps", "curl", "ca-certificates", "qemu-system-x86"}

// root is a fresh Debian, started by systemd in a container.
type root struct {
	*testing.T
	dir  string
	init int // its first process, as the host sees it
}

// newRoot makes one of a release, and starts it.
func newRoot(t *testing.T, release string) *root {
	t.Helper()
	testenv.Need(t, "root", "mmdebstrap")
	_, err := exec.LookPath("systemd-nspawn")
	testenv.NeedThat(t, "nspawn", err, "apt-get install --no-install-recommends systemd-container")
	r := &root{T: t, dir: filepath.Join(testenv.Dir(t), release)}
	mirror := os.Getenv(mirrorEnv)
	if mirror == "" {
		mirror = "http://deb.debian.org/debian"
	}
	archive := kept(release + ".tar")
	if archive == "" {
		archive = filepath.Join(t.TempDir(), "root.tar")
	}
	if _, err := os.Stat(archive); err != nil {
		cmd := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar",
			"--include="+strings.Join(before, ","), release, archive+".new", "deb "+mirror+" "+release+" main")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it unmounts
		cmd.WaitDelay = 20 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("making a root of %s: %v\n%s", release, err, out)
		}
		if err := os.Rename(archive+".new", archive); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", r.dir, "--numeric-owner").CombinedOutput(); err != nil {
		t.Fatalf("unpacking a root of %s: %v\n%s", release, err, out)
	}
	r.start()
	return r
}

// start has systemd start the root. It is on the host's network, to fetch packages.
func (r *root) start() {
	r.Helper()
	log, err := os.Create(filepath.Join(filepath.Dir(r.dir), "console"))
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--directory="+r.dir, "--machine=skep-test",
		"--resolv-conf=copy-host", "--console=pipe", "--capability=all", "--bind=/dev/net/tun", "--boot", "--",
		// Where the host still has the cgroups of old.
		"SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1")
	cmd.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0", // userfaultfd, and ptrace
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes") // settings of slots' networks
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // asks systemd to power off
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill() // and the kernel all that is in its namespace
			<-ended
		}
		log.Close()
		if r.Failed() {
			b, _ := os.ReadFile(log.Name())
			r.Logf("the root's console:\n%s", b[max(0, len(b)-4000):])
		}
	})
	eventually(r.T, "the root to be up", func() error {
		select {
		case err := <-ended:
			ended <- err
			r.Fatalf("systemd-nspawn ended: %v", err)
		default:
		}
		// Its first child makes the root's first process, and ends.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(string(b), &r.init); err != nil {
			return errors.New("it has no process yet")
		}
		out, err := r.try("systemctl is-system-running")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return fmt.Errorf("systemd says %q (%v)", state, err)
		}
		return nil
	})
}

// try runs a script in the root.
func (r *root) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", fmt.Sprintf("--target=%d", r.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
		"/bin/sh", "-ec", script)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// run runs a script that must do what it is for, and says what it wrote.
func (r *root) run(script string) string {
	r.Helper()
	out, err := r.try(script)
	if err != nil {
		log, _ := r.try("journalctl --no-pager -n 30 -u skep")
		r.Fatalf("%s: %v\n%s\n%s", script, err, out, log)
	}
	return out
}

// says runs a script whose output must have each of the texts in it.
func (r *root) says(script string, want ...string) {
	r.Helper()
	out := r.run(script)
	for _, w := range want {
		if !strings.Contains(out, w) {
			r.Errorf("%s: %q is not in\n%s", script, w, out)
		}
	}
}

// give copies a file into the root's /root.
func (r *root) give(path string) string {
	r.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, "root", filepath.Base(path)), b, 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
	return "/root/" + filepath.Base(path)
}

// files are all that there are in the root, but for what other programs keep of
// what was done.
func (r *root) files() map[string]bool {
	r.Helper()
	out := r.run("find / -xdev -path /proc -prune -o -path /sys -prune -o -path /run -prune -o -path /tmp -prune -o -path /root -prune -o " +
		"-path /var/log -prune -o -path /var/lib/dpkg -prune -o -path /var/lib/apt -prune -o -path /var/cache/apt -prune -o -path /var/cache/man -prune -o -path /var/cache/debconf -prune -o " +
		"-path '/var/lib/systemd/*' -prune -o -path '/var/tmp/*' -prune -o -print")
	all := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		all[s.Text()] = true
	}
	return all
}

// eventually waits until what is asked for is so.
func eventually(t *testing.T, what string, so func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = so(); err == nil {
			return
		}
	}
	t.Fatalf("waiting for %s: %v", what, err)
}
