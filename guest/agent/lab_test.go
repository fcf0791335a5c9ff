package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/vmm"
)

// limit is for how long one test may wait for a guest that software emulates on
// a busy machine.
const limit = 90 * time.Second

// uid is an unprivileged user that nothing else runs as.
const uid = 61938

// port of the probe.
const port = 8080

// lab has what machines need. Tests share it.
type lab struct {
	vmm   vmm.VMM
	slots *network.Slots
	shape vmm.Config
	ids   int
}

// place is what the probe tells; see testdata/probe.
type place struct {
	UID, GID                    int
	Groups                      []int
	Dir, Hostname, Random, UUID string
	Env, Args, Mounts, Hooks    []string
	Files                       map[string]string
	Time                        time.Time
	Cgroup, OOMScore            string
	Children                    []string
}

func newLab(t testing.TB, v vmm.VMM) *lab {
	t.Helper()
	testenv.Need(t, "root", "tap", "kernel")
	k := testenv.Kernel(t)
	dir := t.TempDir()
	init, err := initramfs.Build(dir, testenv.Program(t, "cmd/skep-agent"), k)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := network.Open(t.Context(), network.Options{
		Prefix:   fmt.Sprintf("skep-agent-test-%d", os.Getpid()),
		GuestMAC: guest.MAC, HostMAC: guest.HostMAC, Guest: guest.Address, Gateway: guest.Gateway, PrefixLen: guest.PrefixLen,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slots.Close(); err != nil {
			t.Errorf("closing the slots: %v", err)
		}
	})
	return &lab{vmm: v, slots: slots, shape: vmm.Config{
		VCPUs: 1, MemoryMiB: 160, Kernel: k.Path, Initramfs: init.Path, Cmdline: kernel.Cmdline(), RootDisk: disk(t, dir),
	}}
}

// disk makes a root disk of the image.
func disk(t testing.TB, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "root.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := tar2ext4.Convert(image(t), f); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// image is a tar with the probe and the files that users are looked up in.
func image(t testing.TB) *bytes.Buffer {
	t.Helper()
	probe, err := os.ReadFile(testenv.Program(t, "guest/agent/testdata/probe"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	for _, d := range []string{"etc", "bin", "srv"} {
		add(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "probe", Typeflag: tar.TypeReg, Mode: 0o755}, string(probe))
	add(tar.Header{Name: "bin/probe-link", Typeflag: tar.TypeSymlink, Linkname: "/probe"}, "")
	add(tar.Header{Name: "dev", Typeflag: tar.TypeSymlink, Linkname: "srv/devices"}, "")
	add(tar.Header{Name: "srv/devices", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	// A link that leads out of the root where it is followed as an ordinary path.
	add(tar.Header{Name: "etc/resolv.conf", Typeflag: tar.TypeSymlink, Linkname: "/../run/resolved/stub.conf"}, "")
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:\nweb:x:34:\nmedia:x:44:web\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// machine is a running guest.
type machine struct {
	vmm.Machine
	t       testing.TB
	slot    *network.Slot
	pool    network.Pool
	dir     string
	memory  string
	session *guest.Session

	mu   sync.Mutex // guards logs
	logs []string
}

func (l *lab) host(t testing.TB) (*machine, vmm.Host) {
	t.Helper()
	slot, err := l.slots.Take(t.Context(), "none")
	if err != nil {
		t.Fatal(err)
	}
	l.ids++
	m := &machine{t: t, slot: slot, pool: l.slots, dir: t.TempDir()}
	t.Cleanup(m.end)
	return m, vmm.Host{ID: fmt.Sprintf("agent-test-%d", l.ids), Dir: m.dir, NetNS: slot.NetNS, Tap: slot.Tap, MAC: guest.MAC, UID: uid, GID: uid}
}

// end ends the machine. It is idempotent.
func (m *machine) end() {
	if m.slot == nil {
		return
	}
	if m.session != nil {
		m.session.Close()
	}
	if m.Machine != nil {
		if err := m.Kill(); err != nil {
			m.t.Errorf("Kill: %v", err)
		}
	}
	m.pool.Give(m.slot)
	m.slot = nil
	if m.t.Failed() {
		m.t.Logf("console:\n%s", m.console())
	}
}

func (m *machine) console() string {
	b, _ := os.ReadFile(filepath.Join(m.dir, "console.log"))
	return string(b)
}

// boot boots a machine and greets its agent.
func (l *lab) boot(t testing.TB) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Limit(t, limit))
	defer cancel()
	m, h := l.host(t)
	m.memory = filepath.Join(m.dir, "memory")
	var err error
	if m.Machine, err = l.vmm.Boot(ctx, vmm.BootSpec{Config: l.shape, Host: h, MemoryFile: m.memory}); err != nil {
		t.Fatal(err)
	}
	m.greet(ctx)
	return m
}

// greet dials until the agent listens.
func (m *machine) greet(ctx context.Context) {
	m.t.Helper()
	for {
		// A SYN that a booting guest does not take is sent again only after a
		// second: try anew instead.
		try, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		conn, err := m.slot.Dial(try, guest.AgentPort)
		cancel()
		if err == nil {
			if m.session, err = guest.Connect(ctx, conn, m.log); err != nil {
				m.t.Fatal(err)
			}
			return
		}
		select {
		case <-ctx.Done():
			m.t.Fatalf("the agent does not answer: %v\n%s", err, m.console())
		case <-m.Done():
			m.t.Fatalf("the machine ended: %v\n%s", m.Err(), m.console())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (m *machine) log(stream string, line []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logs = append(m.logs, stream+": "+string(line))
}

func (m *machine) lines() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.logs...)
}

func order(instance string, argv ...string) guest.Start {
	return guest.Start{Instance: instance, Argv: argv, Env: []string{"A=1", "B=2"}, Dir: "/", Port: port, DiskMiB: 16,
		UnixNano: time.Now().UnixNano(), Entropy: entropy()}
}

func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b)
	return b
}

// start starts the probe and waits until it is ready.
func (m *machine) start(s guest.Start) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), testenv.Limit(m.t, limit))
	defer cancel()
	if err := m.session.Start(ctx, s); err != nil {
		m.t.Fatal(err)
	}
	if err := m.session.Ready(ctx); err != nil {
		m.t.Fatalf("%v; logs %q", err, m.lines())
	}
}

// snapshot ends the machine and returns its snapshot.
func (m *machine) snapshot() (state, memory string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), testenv.Limit(m.t, limit))
	defer cancel()
	if err := m.session.Prepare(ctx); err != nil {
		m.t.Fatal(err)
	}
	if err := m.Pause(ctx); err != nil {
		m.t.Fatal(err)
	}
	state, memory = filepath.Join(m.dir, "state"), filepath.Join(m.dir, "memory-kept")
	if err := m.Snapshot(ctx, state, memory); err != nil {
		m.t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		m.t.Fatal(err)
	}
	return state, memory
}

// restore starts a clone, which has not been told so yet.
func (l *lab) restore(t testing.TB, state string, mem vmm.Memory) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Limit(t, limit))
	defer cancel()
	m, h := l.host(t)
	var err error
	if m.Machine, err = l.vmm.Restore(ctx, vmm.RestoreSpec{Config: l.shape, Host: h, State: state, Memory: mem}); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	m.greet(ctx)
	return m
}

func (m *machine) clone(c guest.Clone) error {
	ctx, cancel := context.WithTimeout(m.t.Context(), testenv.Limit(m.t, limit))
	defer cancel()
	c.UnixNano, c.Entropy = time.Now().UnixNano(), entropy()
	return m.session.Clone(ctx, c)
}

// get asks the probe.
func (m *machine) get(path string) (int, string) {
	m.t.Helper()
	client := http.Client{Timeout: testenv.Limit(m.t, limit), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return m.slot.Dial(ctx, port) },
	}}
	resp, err := client.Get("http://guest" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

func (m *machine) place() (p place) {
	m.t.Helper()
	status, body := m.get("/place")
	if status != 200 {
		m.t.Fatalf("asking the probe: %d %s", status, body)
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		m.t.Fatal(err)
	}
	return p
}

// until waits for something that takes a moment.
func (m *machine) until(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(testenv.Limit(m.t, limit)); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// blocked runs f while nobody takes the function's output.
func (m *machine) blocked(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}
