package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/shim/shimtest"
)

// writeMap writes a file as a kubelet writes those of a config map: in a directory of
// their own, to which a link leads that is replaced.
func writeMap(t *testing.T, dir, stamp, text string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Join(dir, stamp), 0o755), os.WriteFile(filepath.Join(dir, stamp, "key"), []byte(text), 0o644),
		os.Symlink(stamp, filepath.Join(dir, "..new")), os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
	_ = os.Symlink("..data/key", filepath.Join(dir, "key")) // it may be there
	if err != nil {
		t.Fatal(err)
	}
}

// What is mounted read-only nobody in the container can write to, as under runc,
// whichever way it starts; what changes on the host arrives all the same.
func TestReadOnly(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		dir := t.TempDir()
		config, secret, file := filepath.Join(dir, "config"), filepath.Join(dir, "secret"), filepath.Join(dir, "file")
		bind := func(source, at string) []string {
			return []string{"--mount", "type=bind,src=" + source + ",dst=" + at + ",options=rbind:ro"}
		}
		flags := args("run", "-d", bind(config, "/etc/map"), bind(secret, "/run/secrets/s"), bind(file, "/etc/one/setting"), "--mount", "type=tmpfs,dst=/scratch,options=noexec")
		for i, tt := range []struct {
			id    string
			flags []string
		}{
			{"makes", args(vm, "--env", "PORT=8080")},
			{"ready", args(vm, "--env", "PORT=8080")},
			{"base", args(vm, "--annotation", "skep.dev/snapshot=base", "--read-only")},
			{"off", args(vm, "--annotation", "skep.dev/snapshot=off")},
			{"runc", args("--read-only")},
		} {
			if err := errors.Join(os.RemoveAll(config), os.RemoveAll(secret), os.WriteFile(file, []byte("first"), 0o644)); err != nil {
				t.Fatal(err)
			}
			writeMap(t, config, "..1", "first")
			writeMap(t, secret, "..1", "first")
			c.Starts(tt.id, args(flags, tt.flags, shimtest.ProbeImage, tt.id, "serve", "8080", "0.2")...)
			inside := func(command ...string) shimtest.Result {
				return c.Run(args("task", "exec", "--exec-id", "x", tt.id, command)...)
			}
			denied := []string{"/etc/map/..data/key", "/etc/map/new", "/run/secrets/s/key", "/etc/one/setting"}
			if strings.Contains(strings.Join(tt.flags, " "), "--read-only") {
				denied = append(denied, "/new", "/etc/hosts")
			}
			for _, path := range denied {
				if r := inside("/bin/write", path, "x"); r.Code == 0 || !strings.Contains(r.Stderr, "read-only file system") && tt.id != "runc" {
					t.Errorf("%s: writing to %s: %d, %s", tt.id, path, r.Code, r.Stderr)
				}
			}
			if r := inside("/bin/write", "/scratch/new", "x"); r.Code != 0 {
				t.Errorf("%s: writing to its tmpfs: %s", tt.id, r.Stderr)
			}
			if out := inside("/bin/mounts").Stdout; !strings.Contains(line(out, " /scratch "), "noexec") || !strings.Contains(line(out, " /etc/map "), " ro,") {
				t.Errorf("%s: it has mounted %s", tt.id, out)
			}
			for _, path := range []string{"/etc/map/key", "/run/secrets/s/key", "/etc/one/setting"} {
				if r := inside("/bin/cat", path); r.Stdout != "first" {
					t.Errorf("%s: %s is %q, %s", tt.id, path, r.Stdout, r.Stderr)
				}
			}
			if i > 0 { // once is enough of what is alike, but for what a clone does
				writeMap(t, config, "..2", "second")
				writeMap(t, secret, "..2", "second")
				if err := os.WriteFile(file, []byte("second"), 0o644); err != nil {
					t.Fatal(err)
				}
				for _, path := range []string{"/etc/map/key", "/run/secrets/s/key", "/etc/one/setting"} {
					for limit := time.Now().Add(c.Limit(time.Minute)); inside("/bin/cat", path).Stdout != "second"; time.Sleep(200 * time.Millisecond) {
						if time.Now().After(limit) {
							t.Fatalf("%s: %s has not changed\n%s", tt.id, path, c.Log())
						}
					}
				}
			}
			end(c, tt.id)
		}
		if log := c.Log(); !strings.Contains(log, "ready=there") {
			t.Errorf("none has started from a ready snapshot\n%s", log)
		}
	})
}

// line is the first that holds a text.
func line(of, text string) string {
	for l := range strings.Lines(of) {
		if strings.Contains(l, text) {
			return l
		}
	}
	return ""
}
