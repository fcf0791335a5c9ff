package agent_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// differences are what may differ between what a function finds in its guest and
// what runc gives to the same image, by how the facts' names begin; each with its
// reason. All else is the same.
var differences = map[string]string{
	"pid":                    "PID 1 is the agent, which reaps orphans",
	"oom_score_adj":          "the kernel is to end the function before the agent",
	"mount /":                "the root is an overlay of disk and memory",
	"file / ":                "as the image has it, or as the directory that runc was given",
	"mount /etc/":            "hosts, hostname and resolv.conf are files of the runtime's above runc (containerd, docker)",
	"file /etc":              "they are made in it",
	"file /dev/core":         "a link where the kernel has /proc/kcore, which the host's may not have",
	"file /run":              "/run/skep/instance tells a clone its name",
	"mount /run/skep/":       "the same",
	"file /tmp":              "made where an image has none; without it too many programs fail",
	"mount /proc/":           "runc hides and protects what is the host's kernel; here the kernel is the function's own",
	"mount /sys/firmware":    "the same",
	"status Cap":             "root may do all: the machine is the boundary, not the kernel",
	"status NoNewPrivs":      "the same",
	"status Seccomp":         "the same",
	"limit NOFILE":           "the same soft limit, but it may be raised, as under Docker and systemd",
	"limit NPROC":            "by default from the machine's memory",
	"limit SIGPENDING":       "by default from the machine's memory",
	"limit MEMLOCK":          "by default from the kernel's version",
	"open stdin":             "runc makes a pipe of what it has itself; containerd gives /dev/null, too, where nobody writes",
	"cgroup":                 "the hierarchies are those of the host, where that has v1",
	"mount /sys/fs/cgroup":   "the same",
	"file /sys/fs/cgroup":    "the same",
	"readable /sys/fs":       "the same",
	"readable /proc/sys/net": "runc has no network here",
}

// testSurroundings compares, fact by fact, what the probe finds in a guest with
// what it finds under runc.
func testSurroundings(t *testing.T, l *lab) {
	testenv.Need(t, "runc")
	for _, user := range []struct {
		spec   string
		uid    int
		groups []int
		home   string
	}{{"", 0, nil, "/root"}, {"web", 33, []int{44}, "/srv"}} {
		m := l.boot(t)
		s := order("name", "/probe")
		s.User, s.Dir, s.DiskMiB = user.spec, "/srv/new/directory", 64
		m.start(s)
		guest := m.surroundings()
		m.end()
		runc := underRunc(t, map[string]any{"uid": user.uid, "gid": user.uid + user.uid/33, "additionalGids": user.groups}, s.Dir, append(s.Env, fmt.Sprintf("PORT=%d", port)))
		for _, name := range slices.Sorted(maps.Keys(merged(guest, runc))) {
			if guest[name] != runc[name] && !allowed(name) {
				t.Errorf("user %q: %s: %q, under runc %q", user.spec, name, guest[name], runc[name])
			}
		}
		for name, want := range map[string]string{
			"file /dev/core": "-> /proc/kcore", // the guest's kernel has it
			"reopen stdout":  "works", "reopen stderr": "works", "reopen stdin": "works",
			"env HOME": user.home, "directory": s.Dir, "file /tmp": "directory 1777 0:0", "limit NOFILE": "1024 524288",
			"mount /sys/fs/cgroup": "cgroup2 nodev,noexec,nosuid,relatime,ro,rw", "readable /sys/fs/cgroup/memory.max": "true",
			"readable /sys/fs/cgroup/cpu.max": "true",
		} {
			if guest[name] != want {
				t.Errorf("user %q: %s: %q, want %q", user.spec, name, guest[name], want)
			}
		}
	}
}

func merged(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func allowed(name string) bool {
	for begin := range differences {
		if strings.HasPrefix(name+" ", begin) {
			return true
		}
	}
	return false
}

func (m *machine) surroundings() (facts map[string]string) {
	m.t.Helper()
	_, body := m.get("/surroundings")
	if err := json.Unmarshal([]byte(body), &facts); err != nil {
		m.t.Fatalf("%v: %s", err, body)
	}
	return facts
}

// underRunc runs the probe in the image under runc, with the settings that
// containerd makes for it.
func underRunc(t *testing.T, user map[string]any, dir string, env []string) (facts map[string]string) {
	t.Helper()
	bundle := t.TempDir()
	unpack(t, image(t), filepath.Join(bundle, "rootfs"))
	if out, err := exec.Command("runc", "spec", "--bundle", bundle).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v\n%s", err, out)
	}
	var config map[string]any
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err == nil {
		err = json.Unmarshal(b, &config)
	}
	if err != nil {
		t.Fatal(err)
	}
	config["root"] = map[string]any{"path": "rootfs"} // not read-only
	config["hostname"] = "name"
	process := config["process"].(map[string]any)
	process["terminal"] = false
	process["args"] = []string{"/probe", "surroundings"}
	process["env"] = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	process["cwd"] = dir
	process["user"] = user
	for _, m := range config["mounts"].([]any) {
		if m := m.(map[string]any); m["destination"] == "/proc" {
			m["options"] = []string{"nosuid", "noexec", "nodev"}
		}
	}
	if b, err = json.Marshal(config); err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	run := exec.Command("runc", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, fmt.Sprintf("skep-agent-test-%d", os.Getpid()))
	var out, errs bytes.Buffer
	run.Stdin, run.Stdout, run.Stderr = nil, &out, &errs
	if err := run.Run(); err != nil {
		t.Fatalf("runc run: %v\n%s", err, errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), &facts); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	withoutInherited(t, facts)
	return facts
}

// withoutInherited takes from the signals that runc's process ignores those that
// this one does: runc hands them on, and a make that spawns by glibc ignores one.
func withoutInherited(t *testing.T, facts map[string]string) {
	t.Helper()
	const name = "status SigIgn"
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(own), "\nSigIgn:\t")
	line, _, _ := strings.Cut(rest, "\n")
	ours, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := strconv.ParseUint(facts[name], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	facts[name] = fmt.Sprintf("%016x", theirs&^ours)
}

func unpack(t *testing.T, from io.Reader, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.Mkdir(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, path)
		default:
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, b, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
