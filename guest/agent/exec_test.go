package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/vmm"
)

func (m *machine) ctx() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	m.t.Cleanup(cancel)
	return ctx
}

func (m *machine) dialExec() net.Conn {
	m.t.Helper()
	c, err := m.slot.Dial(m.ctx(), guest.ExecPort)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.console())
	}
	return c
}

// shared is a writer for stdout and stderr at once.
type shared struct {
	mu sync.Mutex // held to write
	to io.Writer
}

func (w *shared) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

func (m *machine) exec(p guest.Process, out io.Writer) *guest.Running {
	m.t.Helper()
	out = &shared{to: out}
	r, err := guest.Exec(m.ctx(), m.dialExec(), p, out, out)
	if err != nil {
		m.t.Fatalf("%q: %v\n%s", p.Argv, err, m.console())
	}
	return r
}

// run runs a process to its end and returns what it wrote.
func (m *machine) run(p guest.Process) (string, guest.ProcessExit) {
	m.t.Helper()
	var out bytes.Buffer
	r := m.exec(p, &out)
	exit, err := r.Wait(m.ctx())
	if err != nil {
		m.t.Fatalf("%q: %v\n%s", p.Argv, err, m.console())
	}
	return out.String(), exit
}

// deliver delivers a file.
func (m *machine) deliver(to, name, text string) {
	m.t.Helper()
	if err := guest.Deliver(m.ctx(), m.dialExec(), to, tarOf(m.t, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Uid: 33}, text)); err != nil {
		m.t.Errorf("delivering %s: %v\n%s", to, err, m.console())
	}
}

// tarOf makes a tar stream of one file.
func tarOf(t testing.TB, h tar.Header, text string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h.Size = int64(len(text))
	err := w.WriteHeader(&h)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return &b
}

// testProcesses runs processes in a guest that was started without a function.
func testProcesses(t *testing.T, l *lab) {
	m := l.boot(t)
	if _, err := guest.Exec(m.ctx(), m.dialExec(), guest.Process{ID: "x", Argv: []string{"/probe", "cat"}}, nil, nil); err == nil || !strings.Contains(err.Error(), "not started") {
		t.Errorf("before its start: %v", err)
	}
	s := order("i-0", nil...)
	s.Names = guest.Names{Hostname: "room", Hosts: "192.0.2.1 there\n", Resolv: "nameserver 192.0.2.2\n"}
	s.Mounts = []guest.Mount{{Path: "/srv/room", Bytes: 1 << 20, Mode: 0o700, Options: []string{"noexec", "nosuid"}},
		{Path: "/srv/map", Kind: guest.MountDirectory, Options: []string{"ro"}}, {Path: "/srv/volume", Kind: guest.MountImage}}
	s.Dir, s.IPv6, s.CPUs = "/srv/work/here", true, 0.5
	s.ReadOnlyRoot, s.Sysctls = true, map[string]string{"net.core.somaxconn": "777"}
	s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/timer_list", "/etc/group", "/bin", "/none"}, []string{"/proc/sys", "/srv/room/none", "/etc/hosts"}
	m.start(s)
	out, _ := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "read", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/skep/instance", "/etc/group", "/bin/probe-link",
		"/proc/sys/net/core/somaxconn", "/proc/sys/kernel/hostname", "/proc/net/if_inet6", "/proc/net/ipv6_route", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu.weight"}})
	// By the kernel's flags, the address is permanent, and there at once.
	address, gateway := fmt.Sprintf("%x", guest.Address6.AsSlice()), fmt.Sprintf("%x", guest.Gateway6.AsSlice())
	if !strings.Contains(out, address+" 02 7e 00 82") || !strings.Contains(out, gateway) {
		t.Errorf("neither %s nor %s is in %s", address, gateway, out)
	}
	for _, want := range []string{`/etc/hostname="room\n"`, `/etc/hosts="192.0.2.1 there\n"`, `/etc/resolv.conf="nameserver 192.0.2.2\n"`, `/run/skep/instance="i-0\n"`, `/etc/group=""`,
		"no such file", `/proc/sys/net/core/somaxconn="777\n"`, `/proc/sys/kernel/hostname="room\n"`, `/sys/fs/cgroup/cpu.max="50000 100000\n"`, `/sys/fs/cgroup/cpu.weight="100\n"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is not in %s", want, out)
		}
	}
	out, _ = m.run(guest.Process{ID: "x", Argv: []string{"/probe", "write", "/srv/x", "/srv/map/x", "/etc/hosts", "/proc/sys/net/core/somaxconn", "/sys/fs/cgroup/cpu.max", "/srv/room/x", "/srv/volume/x", "/dev/shm/x"}})
	want := ""
	for _, name := range []string{"/srv/x", "/srv/map/x", "/etc/hosts", "/proc/sys/net/core/somaxconn", "/sys/fs/cgroup/cpu.max"} {
		want += name + " open " + name + ": read-only file system\n"
	}
	if want += "/srv/room/x <nil>\n/srv/volume/x <nil>\n/dev/shm/x <nil>\n"; out != want {
		t.Errorf("writing: %q, want %q", out, want)
	}
	for _, text := range []string{"abc", "another"} {
		m.deliver("/srv/map", "mount/given", text)
		m.deliver("/etc/hosts", "mount", text)
		if out, _ := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "read", "/srv/map/given", "/etc/hosts"}, Dir: "/srv/work/here"}); strings.Count(out, fmt.Sprintf("%q", text)) != 2 {
			t.Errorf("delivered was %s, there is %s", text, out)
		}
	}

	out, _ = m.run(guest.Process{ID: "x", Argv: []string{"/probe", "escape", "/srv/room/jail"}})
	if want := "<nil> <nil> <nil>\n<nil>\n/rw false <nil>\n/lower false <nil>\n/delivered false <nil>\n/root true <nil>\nopen /root/srv/escaped: read-only file system\n"; out != want {
		t.Errorf("out of its root a process finds %q, want %q", out, want)
	}

	score := 77
	out, exit := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "self"}, TTY: true, Rows: 33, Cols: 111, IDs: &guest.IDs{UID: 33, GID: 34, Groups: []uint32{44}}, NoNewPrivileges: true,
		Capabilities: &guest.Capabilities{}, OOMScoreAdj: &score,
		Rlimits: []guest.Rlimit{{Type: "RLIMIT_MEMLOCK", Soft: 1 << 40, Hard: 1 << 40}, {Type: "RLIMIT_NOFILE", Soft: 5000, Hard: 600000}, {Type: "RLIMIT_CORE"}}})
	words := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{"Max locked memory 1099511627776 1099511627776", " 600000 files", "Max core file size 0 0", "Uid: 33 33 33 33", "Groups: 44", "NoNewPrivs: 1",
		"CapBnd: 0000000000000000", "oom 77", "terminal true", "size 33 111"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	if exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	if out, _ := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "self"}, Rlimits: []guest.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}}); !strings.Contains(strings.Join(strings.Fields(out), " "), "20 files") {
		t.Errorf("few files: %s", out)
	}
	sent, got := sha256.New(), sha256.New()
	r := m.exec(guest.Process{ID: "x", Argv: []string{"/probe", "cat"}, Stdin: true}, got)
	if _, err := io.Copy(io.MultiWriter(r, sent), io.LimitReader(rand.Reader, 8<<20)); err != nil {
		t.Error(err)
	}
	if err := r.CloseStdin(); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(m.ctx()); err != nil || exit.Code != 0 || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("8 MiB through it: %+v, %v", exit, err)
	}
	out, exit = m.run(guest.Process{ID: "x", Argv: []string{"/probe", "hog"}})
	if exit.Signal != int(unix.SIGKILL) || !exit.OOM {
		t.Errorf("one that takes all memory: %+v, %q", exit, out)
	}
	if _, exit := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "exit"}}); exit.Code != 7 || exit.OOM {
		t.Errorf("the next: %+v", exit)
	}
	testInit(m)
	if err := m.session.Stop(m.ctx(), 0); err != nil {
		t.Errorf("stopping a guest without a function: %v", err)
	}
}

// testInit runs the first process of a PID namespace, and others in it.
func testInit(m *machine) {
	m.t.Helper()
	if _, err := guest.Exec(m.ctx(), m.dialExec(), guest.Process{ID: "first", Argv: []string{"/none/such"}, Init: true}, nil, nil); err == nil || !strings.Contains(err.Error(), "no such program") {
		m.t.Errorf("one that is not there: %v", err)
	}
	var out bytes.Buffer
	first := m.exec(guest.Process{ID: "first", Argv: []string{"/probe", "cat"}, Stdin: true, Init: true, Keep: true, IDs: &guest.IDs{UID: 33, GID: 34}}, &out)
	got, _ := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "read", "/proc/1/cmdline", "/proc/timer_list"}})
	for _, want := range []string{`/proc/1/cmdline="/probe\x00cat\x00"`, `/proc/timer_list=""`} {
		if !strings.Contains(got, want) {
			m.t.Errorf("beside the first process %s is not in %s", want, got)
		}
	}
	if out, _ := m.run(guest.Process{ID: "x", Argv: []string{"/probe", "write", "/proc/sys/net/core/somaxconn"}}); !strings.Contains(out, "read-only") {
		m.t.Errorf("writing to /proc/sys: %s", out)
	}
	if _, err := guest.Exec(m.ctx(), m.dialExec(), guest.Process{ID: "x", Argv: []string{"/probe", "cat"}, Init: true}, nil, nil); err == nil || !strings.Contains(err.Error(), "there can be one") {
		m.t.Errorf("a second first one: %v", err)
	}
	beside := m.exec(guest.Process{ID: "x", Argv: []string{"/probe", "cat"}, Stdin: true}, io.Discard)
	if err := first.CloseStdin(); err != nil {
		m.t.Error(err)
	}
	if exit, err := first.Wait(m.ctx()); err != nil || exit.Code != 0 {
		m.t.Errorf("the end of the first: %+v, %v", exit, err)
	}
	if exit, err := beside.Wait(m.ctx()); err != nil || exit.Signal != int(unix.SIGKILL) {
		m.t.Errorf("the end of what was beside it: %+v, %v", exit, err)
	}
}

// testBase snapshots a guest that holds nothing of any function yet.
func testBase(t *testing.T, l *lab) {
	m := l.boot(t)
	state, memory := m.snapshot()
	for _, name := range []string{"one", "two"} {
		c := l.restore(t, state, vmm.Memory{File: memory})
		if err := c.clone(guest.Clone{Instance: name}); err != nil {
			t.Fatal(err)
		}
		c.start(order(name, "/probe"))
		if p := c.place(); p.Hostname != name || p.Files["/etc/hostname"] != name+"\n" {
			t.Errorf("%s is called %s, %q", name, p.Hostname, p.Files["/etc/hostname"])
		}
		if out, exit := c.run(guest.Process{ID: "x", Argv: []string{"/probe", "exit"}}); exit.Code != 7 {
			t.Errorf("%s: %q, %+v", name, out, exit)
		}
		c.end()
	}
}

// testKept snapshots a guest whose only process is one of Exec's: it runs on in
// the clone, which gets what it may not share before that, and its host attaches.
func testKept(t *testing.T, l *lab) {
	m := l.boot(t)
	s := order("before")
	s.Names = guest.Names{Hostname: "host-before"}
	s.Mounts = []guest.Mount{{Path: "/srv/secrets", Kind: guest.MountDirectory, Options: []string{"ro"}}}
	m.start(s)
	kept := m.exec(guest.Process{ID: "main", Argv: []string{"/probe"}, Env: []string{"PORT=8080"}, Keep: true}, io.Discard)
	gone := m.exec(guest.Process{ID: "shell", Argv: []string{"/probe", "stubborn"}, Env: []string{"PORT=0"}}, io.Discard)
	m.until("it serves", func() bool { status, _ := m.get("/place"); return status == 200 })
	state, memory := m.snapshot()
	for _, r := range []*guest.Running{kept, gone} {
		var detached *guest.DetachedError
		if _, err := r.Wait(m.ctx()); !errors.As(err, &detached) || !strings.Contains(err.Error(), "snapshot") {
			t.Errorf("its host is told %v", err)
		}
	}
	c := l.restore(t, state, vmm.Memory{File: memory})
	c.deliver("/srv/secrets", "mount/token", "abc") // before the clone message
	if _, err := guest.Exec(c.ctx(), c.dialExec(), guest.Process{ID: "early", Argv: []string{"/probe", "cat"}}, nil, nil); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("a process before the clone message: %v", err)
	}
	if err := c.clone(guest.Clone{Instance: "after", Names: guest.Names{Hostname: "host-after", Hosts: "192.0.2.9 x\n", Resolv: "nameserver 192.0.2.8\n"}}); err != nil {
		t.Fatal(err)
	}
	p := c.place()
	for name, want := range map[string]string{"/etc/hosts": "192.0.2.9 x\n", "/etc/hostname": "host-after\n", "/run/skep/instance": "after\n", "/etc/resolv.conf": "nameserver 192.0.2.8\n"} {
		if p.Files[name] != want {
			t.Errorf("%s is %q, want %q", name, p.Files[name], want)
		}
	}
	if p.Hostname != "host-after" {
		t.Errorf("it is called %s", p.Hostname)
	}
	if out, _ := c.run(guest.Process{ID: "x", Argv: []string{"/probe", "read", "/srv/secrets/token"}}); !strings.Contains(out, `"abc"`) {
		t.Error(out)
	}
	r, err := guest.Attach(c.ctx(), c.dialExec(), "main", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.PID() != kept.PID() {
		t.Errorf("its pid was %d and is %d", kept.PID(), r.PID())
	}
	if err := r.Signal(int(unix.SIGTERM), guest.ToProcess); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(c.ctx()); err != nil || exit.Code != 3 {
		t.Errorf("%+v, %v", exit, err)
	}
	if _, err := guest.Attach(c.ctx(), c.dialExec(), "shell", nil, nil); err == nil {
		t.Error("who was of one client only is in the clone")
	}
}
