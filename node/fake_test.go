package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/vmm"
)

// world is everything that a node needs, faked, with what tests want to turn
// and to count. Its durations pass on the test's clock.
type world struct {
	dir string

	mu        sync.Mutex // guards what follows
	machines  map[string]*fakeMachine
	slots     map[*network.Slot]*fakeMachine // which machine is behind each slot
	nextSlot  int
	lent      int // slots
	sessions  int // open memory sessions
	agents    int // open
	boots     int
	restores  int
	responded int
	abandoned int
	tried     int
	onOpen    func()   // called when memory is opened
	calls     []string // in which order, of the last start

	bootTime, restoreTime time.Duration
	serviceTime           time.Duration // of a request
	bootErr, restoreErr   error
	readyErr, cloneErr    error
	snapshotErr           error
	memoryErr, slotErr    error
	info                  vmm.Info
	limits                vmm.Limits // of the newest machine
	infoErr               error
	refuse                func(*fakeMachine) bool  // connections to the function's server
	endsAfter             time.Duration            // a server that is ready ends after it; 0: never
	hang                  func(*http.Request) bool // requests that get no answer, and whose server then takes no other until they are given up
	status                int                      // of answers to what is no probe; 0: 200
	say                   []string                 // what a booted function writes
	content               []byte                   // of a booted guest's memory, at its beginning
	pages                 memory.Pages             // of the newest session whose memory is in no file
	records               []api.Invocation
}

func newWorld(t testing.TB) *world { return newWorldIn(t.TempDir()) }

func newWorldIn(dir string) *world {
	return &world{
		dir: dir, machines: map[string]*fakeMachine{}, slots: map[*network.Slot]*fakeMachine{},
		bootTime: 2 * time.Second, restoreTime: 100 * time.Millisecond,
		info: vmm.Info{Name: "fake", Version: "1", Accel: "tcg", Machine: "m"},
	}
}

func (w *world) set(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *world) called(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, what)
}

func (w *world) deps() Deps {
	return Deps{
		VMM:         w,
		Policy:      func(name string) (memory.Policy, error) { return fakePolicy{w, name}, policyErr(name) },
		OpenNetwork: func(context.Context) (network.Pool, error) { return fakeNet{w}, nil },
		OpenImages:  func(context.Context, string) (image.Fetcher, error) { return fakeImages{}, nil },
		OpenKernel: func(context.Context, string) (Kernel, error) {
			return Kernel{Path: "/kernel", Digest: "k1", Initramfs: "/initramfs", InitramfsDigest: "i1", Agent: "a1"}, nil
		},
		Connect:  w.connect,
		Dial:     w.dial,
		OnRecord: func(r api.Invocation) { w.set(func() { w.records = append(w.records, r) }) },
	}
}

func policyErr(name string) error {
	if name == "none-such" {
		return errors.New("no such policy")
	}
	return nil
}

func (w *world) open(t testing.TB, change func(*Config)) *Node {
	t.Helper()
	cfg := Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1}
	if change != nil {
		change(&cfg)
	}
	n, err := Open(context.Background(), cfg, w.deps())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.check(t)
	})
	return n
}

// snapshotIDs lists the snapshots of the function hello.
func snapshotIDs(t testing.TB, n *Node) []string {
	t.Helper()
	ids, err := n.snaps.IDs("hello")
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// check that nothing is held any more.
func (w *world) check(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.machines) != 0 || w.lent != 0 || w.sessions != 0 || w.agents != 0 {
		t.Errorf("left: %d machines, %d slots, %d sessions, %d agents", len(w.machines), w.lent, w.sessions, w.agents)
	}
	for _, sub := range []string{"run", "mem"} {
		if e, _ := os.ReadDir(filepath.Join(w.dir, sub)); len(e) != 0 {
			t.Errorf("left in %s: %v", sub, e)
		}
	}
	for _, pattern := range []string{".*", "*/removed"} {
		if e, _ := filepath.Glob(filepath.Join(w.dir, "snapshots", pattern)); len(e) != 0 {
			t.Errorf("left: %v", e)
		}
	}
}

// VMM

func (w *world) Info(context.Context) (vmm.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.info, w.infoErr
}

func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) add(h vmm.Host) *fakeMachine {
	m := &fakeMachine{w: w, id: h.ID, done: make(chan struct{}), exited: make(chan struct{}),
		thread: make(chan struct{}, 1), recover: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limits = h.Limits
	w.machines[h.ID] = m
	for s := range w.slots {
		if s.NetNS == h.NetNS {
			w.slots[s] = m
		}
	}
	return m
}

func (w *world) Boot(ctx context.Context, spec vmm.BootSpec) (vmm.Machine, error) {
	w.set(func() { w.boots++; w.calls = []string{"boot"} })
	if w.bootErr != nil {
		return nil, w.bootErr
	}
	if err := os.WriteFile(spec.MemoryFile, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(spec.MemoryFile, int64(spec.MemoryMiB)<<20); err != nil {
		return nil, err
	}
	if len(w.content) > 0 {
		f, err := os.OpenFile(spec.MemoryFile, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		if _, err := f.WriteAt(w.content, 0); err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	m := w.add(spec.Host)
	m.memory = spec.MemoryFile
	return m, nil
}

func (w *world) Restore(ctx context.Context, spec vmm.RestoreSpec) (vmm.Machine, error) {
	w.set(func() { w.restores++; w.calls = append(w.calls, "restore") })
	if err := pass(ctx, w.restoreTime); err != nil {
		return nil, err
	}
	w.mu.Lock()
	err := w.restoreErr
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, path := range []string{spec.State, spec.Memory.File} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	if spec.Memory.Attach != nil {
		if err := spec.Memory.Attach(ctx, userfaultfd.Guest{}); err != nil {
			return nil, err
		}
	}
	return w.add(spec.Host), nil
}

type fakeMachine struct {
	w      *world
	id     string
	memory string
	paused atomic.Bool
	spent  bool

	once   sync.Once
	done   chan struct{}
	err    error
	exited chan struct{} // the function's server

	thread  chan struct{} // of the server: full while it works
	recover chan struct{} // closed: it hangs no longer
	asked   []string      // guarded by w.mu
	agent   *fakeAgent    // guarded by w.mu: the one that is spoken to
}

func (m *fakeMachine) Pause(context.Context) error { m.paused.Store(true); return nil }
func (m *fakeMachine) Resume(context.Context) error {
	m.w.called("resume")
	return nil
}
func (m *fakeMachine) Snapshot(_ context.Context, state, memory string) error {
	switch {
	case m.memory == "":
		return vmm.ErrNotBooted
	case !m.paused.Load():
		return errors.New("not paused")
	case m.w.snapshotErr != nil:
		return m.w.snapshotErr
	}
	m.spent = true
	if err := os.WriteFile(state, []byte("state of "+m.id), 0o600); err != nil {
		return err
	}
	return os.Rename(m.memory, memory)
}
func (m *fakeMachine) Done() <-chan struct{} { return m.done }
func (m *fakeMachine) Err() error            { <-m.done; return m.err }
func (m *fakeMachine) die(err error) {
	m.once.Do(func() { m.err = err; close(m.done) })
}
func (m *fakeMachine) Kill() error {
	m.die(nil)
	m.w.set(func() { delete(m.w.machines, m.id) })
	return nil
}
func (m *fakeMachine) PID() int { return 4242 }

// endLater has the function's server end when the world says.
func (m *fakeMachine) endLater() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.endsAfter > 0 {
		time.AfterFunc(m.w.endsAfter, func() { close(m.exited) })
	}
}
func (m *fakeMachine) Timings() vmm.Timings {
	return vmm.Timings{Spawn: 50 * time.Millisecond, Load: 15 * time.Millisecond}
}

// Network

type fakeNet struct{ w *world }

func (f fakeNet) Take(_ context.Context, egress string) (*network.Slot, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.slotErr != nil {
		return nil, f.w.slotErr
	}
	f.w.nextSlot++
	f.w.lent++
	f.w.calls = append(f.w.calls, "slot")
	s := &network.Slot{Name: fmt.Sprint("slot", f.w.nextSlot), NetNS: fmt.Sprint("/ns/", f.w.nextSlot), Index: f.w.nextSlot}
	f.w.slots[s] = nil
	return s, nil
}

func (f fakeNet) Give(s *network.Slot) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.lent--
	delete(f.w.slots, s)
}

func (f fakeNet) Close() error { return nil }

// dial gives one end of a pipe; at the other is the agent's nothing, or an HTTP
// server that answers with its machine's id.
func (w *world) dial(ctx context.Context, s *network.Slot, port int) (net.Conn, error) {
	w.mu.Lock()
	m, lent := w.slots[s]
	w.mu.Unlock()
	if !lent || m == nil {
		return nil, errors.New("nobody is there")
	}
	w.called(fmt.Sprint("dial ", port))
	a, b := net.Pipe()
	if port == guest.AgentPort {
		return &agentConn{Conn: a, m: m, other: b}, nil
	}
	if port == guest.ExecPort {
		go func() { <-m.done; b.Close() }()
		go io.Copy(b, b) // an agent that says what it hears
		return a, nil
	}
	w.mu.Lock()
	refuse := w.refuse
	w.mu.Unlock()
	ended := false
	select {
	case <-m.exited:
		ended = true
	default:
	}
	if ended || refuse != nil && refuse(m) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	go serveOn(b, m)
	return a, nil
}

type agentConn struct {
	net.Conn
	m     *fakeMachine
	other net.Conn
}

func (c *agentConn) Close() error { return errors.Join(c.Conn.Close(), c.other.Close()) }

// serveOn takes one request at a time, as its machine's only thread.
func serveOn(c net.Conn, m *fakeMachine) {
	defer c.Close()
	go func() {
		select {
		case <-m.done:
		case <-m.exited:
		}
		c.Close()
	}()
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		m.thread <- struct{}{}
		m.w.mu.Lock()
		hang, took, status := m.w.hang, m.w.serviceTime, m.w.status
		m.asked = append(m.asked, req.Method+" "+req.RequestURI)
		m.w.mu.Unlock()
		if hang != nil && hang(req) {
			select {
			case <-m.recover:
			case <-m.done:
			}
		}
		time.Sleep(took)
		<-m.thread
		if status == 0 || req.Method == http.MethodOptions {
			status = http.StatusOK
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), len(m.id), m.id); err != nil {
			return
		}
	}
}

// Agent

type fakeAgent struct {
	w    *world
	m    *fakeMachine
	logs microvm.LogFunc
	conn net.Conn
	once sync.Once
}

func (w *world) connect(ctx context.Context, c net.Conn, logs microvm.LogFunc, clone *guest.Clone) (microvm.Agent, error) {
	w.set(func() { w.agents++; w.calls = append(w.calls, "connect") })
	a := &fakeAgent{w: w, m: c.(*agentConn).m, logs: logs, conn: c}
	w.set(func() { a.m.agent = a })
	if clone != nil {
		if err := a.Clone(ctx, *clone); err != nil {
			a.Close()
			return nil, err
		}
	}
	return a, nil
}

func (a *fakeAgent) Start(_ context.Context, s guest.Start) error {
	for _, line := range a.w.say {
		a.logs("stdout", []byte(line))
	}
	return nil
}

func (a *fakeAgent) Ready(ctx context.Context) error {
	if err := pass(ctx, a.w.bootTime); err != nil {
		return err
	}
	a.m.endLater()
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	return a.w.readyErr
}

func (a *fakeAgent) Clone(context.Context, guest.Clone) error {
	a.w.called("clone")
	a.m.endLater()
	return a.w.cloneErr
}
func (a *fakeAgent) Prepare(context.Context) error { return nil }
func (a *fakeAgent) Stop(context.Context, time.Duration) error {
	a.w.called("stop")
	return nil
}
func (a *fakeAgent) Exited() <-chan struct{} { return a.m.exited }
func (a *fakeAgent) ExitErr() error          { return errors.New("exit status 3") }
func (a *fakeAgent) Close() error {
	a.once.Do(func() { a.w.set(func() { a.w.agents-- }); a.conn.Close() })
	return nil
}

// Memory

type fakePolicy struct {
	w    *world
	name string
}

func (p fakePolicy) Name() string { return p.name }
func (p fakePolicy) Open(ctx context.Context, src memory.Source) (memory.Session, error) {
	s := &fakeSession{w: p.w, policy: p.name, failed: make(chan struct{})}
	if src.Open != nil {
		var err error
		if s.pages, err = src.Open(ctx); err != nil {
			return nil, err
		}
	}
	p.w.set(func() { p.w.sessions++; p.w.calls = []string{"open"}; p.w.pages = s.pages })
	var onOpen func()
	p.w.set(func() { s.err, onOpen = p.w.memoryErr, p.w.onOpen })
	if onOpen != nil {
		onOpen()
	}
	if s.err != nil {
		close(s.failed)
	}
	return s, nil
}

type fakeSession struct {
	w      *world
	policy string
	failed chan struct{}
	err    error
	pages  memory.Pages // nil: a file
}

func (s *fakeSession) Mapped() bool { return s.policy == "mmap" }
func (s *fakeSession) Attach(context.Context, userfaultfd.Guest) error {
	s.w.called("attach")
	return nil
}
func (s *fakeSession) Prefetch()                     { s.w.called("prefetch") }
func (s *fakeSession) Install(context.Context) error { s.w.called("install"); return nil }
func (s *fakeSession) Responded()                    { s.w.set(func() { s.w.responded++ }) }
func (s *fakeSession) Abandoned()                    { s.w.set(func() { s.w.abandoned++ }) }
func (s *fakeSession) Tried() error                  { s.w.set(func() { s.w.tried++ }); return nil }
func (s *fakeSession) Failed() <-chan struct{}       { return s.failed }
func (s *fakeSession) Err() error {
	if s.err != nil {
		return s.err
	}
	return errors.New("disk on fire")
}
func (s *fakeSession) Stats() api.MemoryStats { return api.MemoryStats{Policy: s.policy, Faults: 7} }
func (s *fakeSession) Close() error {
	s.w.set(func() { s.w.sessions-- })
	if s.pages != nil {
		return s.pages.Close()
	}
	return nil
}

// Images

type fakeImages struct{}

func (fakeImages) Fetch(ctx context.Context, ref string, p image.Progress) (image.Image, error) {
	if ref == "missing" {
		return image.Image{}, errors.New("no such image")
	}
	p("pulling", 1, 2)
	return fakeImages{}.Get("sha256:" + ref)
}

func (fakeImages) Get(digest string) (image.Image, error) {
	return image.Image{Digest: digest, Disk: "/disk", DiskBytes: 1 << 20, DiskDigest: "d-" + digest,
		Config: image.Config{Entrypoint: []string{"/app"}, Env: []string{"A=1", "PATH=/bin"}}}, nil
}

// onFake adapts a function of the fake session.
func onFake(f func(*fakeSession)) func(memory.Session) {
	return func(s memory.Session) { f(s.(*fakeSession)) }
}
