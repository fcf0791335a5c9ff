package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// stage fakes what is around a microVM. It notes what is called, fails the step
// that is named, and counts what is held.
type stage struct {
	fails string

	mu    sync.Mutex // guards what follows
	calls []string
	held  map[string]int
	done  chan struct{} // of the machine
	exit  chan struct{} // of the server
	bad   chan struct{} // the memory
	logs  LogFunc
	names guest.Names // that it was told
}

var errStep = errors.New("that step fails")

func newStage(fails string) *stage {
	return &stage{fails: fails, held: map[string]int{}, done: make(chan struct{}), exit: make(chan struct{}), bad: make(chan struct{})}
}

func (s *stage) step(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name)
	if name == s.fails {
		return errStep
	}
	return nil
}

func (s *stage) hold(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[what] += n
}

func (s *stage) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *stage) left() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for what, n := range s.held {
		if n != 0 {
			out = append(out, fmt.Sprintf("%s: %d", what, n))
		}
	}
	return strings.Join(out, ", ")
}

func (s *stage) starter() *Starter {
	return &Starter{VMM: stageVMM{s}, Log: slog.New(slog.DiscardHandler), Connect: func(ctx context.Context, c net.Conn, logs LogFunc, clone *guest.Clone) (Agent, error) {
		a := &stageAgent{s, c}
		err := s.step("greet")
		if err == nil && clone != nil {
			err = a.Clone(ctx, *clone)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		s.hold("agent", 1)
		s.logs = logs
		return a, nil
	}}
}

func (s *stage) spec() Spec {
	return Spec{ID: "i-1", Host: vmm.Host{Dir: "/none"}, Machine: vmm.Config{MemoryMiB: 1}, Server: Server{Name: "f", Port: 8080, CloneHook: "/hook"},
		Dial: func(_ context.Context, port int) (net.Conn, error) {
			if err := s.step(fmt.Sprint("dial ", port)); err != nil {
				return nil, err
			}
			a, b := net.Pipe()
			s.hold("connection", 1)
			return &stageConn{Conn: a, other: b, s: s}, nil
		}}
}

func (s *stage) start(t *testing.T, kind api.StartKind) (*VM, error) {
	if kind == api.StartBoot {
		return s.starter().Boot(t.Context(), BootSpec{Spec: s.spec(), MemoryDir: os.TempDir(), Start: &guest.Start{Argv: []string{"/f"}}})
	}
	s.hold("session", 1)
	return s.starter().Restore(t.Context(), RestoreSpec{Spec: s.spec(), State: "/state", Memory: "/memory", Session: stageSession{s}})
}

type stageConn struct {
	net.Conn
	other net.Conn
	s     *stage
	once  sync.Once
}

func (c *stageConn) Close() error {
	c.once.Do(func() { c.s.hold("connection", -1) })
	return errors.Join(c.Conn.Close(), c.other.Close())
}

type stageVMM struct{ *stage }

func (v stageVMM) Info(context.Context) (vmm.Info, error) { return vmm.Info{}, nil }
func (v stageVMM) Boot(context.Context, vmm.BootSpec) (vmm.Machine, error) {
	return stageMachine(v), v.machine(v.step("boot"))
}
func (v stageVMM) Restore(ctx context.Context, r vmm.RestoreSpec) (vmm.Machine, error) {
	err := r.Memory.Attach(ctx, userfaultfd.Guest{})
	return stageMachine(v), v.machine(errors.Join(err, v.step("load")))
}

func (s *stage) machine(err error) error {
	if err == nil {
		s.hold("machine", 1)
	}
	return err
}

type stageMachine struct{ *stage }

func (m stageMachine) Pause(context.Context) error                    { return m.step("pause") }
func (m stageMachine) Resume(context.Context) error                   { return m.step("resume") }
func (m stageMachine) Snapshot(context.Context, string, string) error { return m.step("snapshot") }
func (m stageMachine) Done() <-chan struct{}                          { return m.done }
func (m stageMachine) Err() error                                     { return errors.New("signal: killed") }
func (m stageMachine) PID() int                                       { return 42 }
func (m stageMachine) Timings() vmm.Timings                           { return vmm.Timings{Spawn: 1, Load: 2} }
func (m stageMachine) Kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held["machine"] == 1 {
		m.calls = append(m.calls, "kill")
	}
	m.held["machine"] = 0
	return nil
}

type stageAgent struct {
	*stage
	conn net.Conn
}

func (a *stageAgent) Start(context.Context, guest.Start) error {
	a.logs("stderr", []byte("it begins"))
	return a.step("start")
}
func (a *stageAgent) Ready(context.Context) error { return a.step("ready") }
func (a *stageAgent) Clone(_ context.Context, c guest.Clone) error {
	if c.Instance != "i-1" || c.Hook != "/hook" || len(c.Entropy) != 64 || c.UnixNano == 0 {
		return fmt.Errorf("the clone message %+v", c)
	}
	a.names = c.Names
	return a.step("clone")
}
func (a *stageAgent) Prepare(context.Context) error { return a.step("prepare") }
func (a *stageAgent) Stop(context.Context, time.Duration) error {
	return a.step("stop")
}
func (a *stageAgent) Exited() <-chan struct{} { return a.exit }
func (a *stageAgent) ExitErr() error          { return errors.New("exit status 3") }
func (a *stageAgent) Close() error            { a.hold("agent", -1); return a.conn.Close() }

type stageSession struct{ *stage }

func (s stageSession) Mapped() bool                                    { return false }
func (s stageSession) Attach(context.Context, userfaultfd.Guest) error { return s.step("attach") }
func (s stageSession) Prefetch()                                       { _ = s.step("prefetch") }
func (s stageSession) Install(context.Context) error                   { return s.step("install") }
func (s stageSession) Responded()                                      {}
func (s stageSession) Abandoned()                                      {}
func (stageSession) Tried() error                                      { return nil }
func (s stageSession) Failed() <-chan struct{}                         { return s.bad }
func (s stageSession) Err() error                                      { return memory.ErrRead }
func (s stageSession) Stats() api.MemoryStats                          { return api.MemoryStats{} }
func (s stageSession) Close() error                                    { s.hold("session", -1); return nil }

// Each start takes these steps in this order. Whichever fails, nothing is left.
func TestStartIsWholeOrNothing(t *testing.T) {
	for kind, steps := range map[api.StartKind][]string{
		api.StartBoot:    {"boot", "dial 10", "greet", "start", "ready"},
		api.StartRestore: {"prefetch", "attach", "load", "install", "resume", "greet", "clone"},
	} {
		for _, fails := range append([]string{""}, steps...) {
			if fails == "prefetch" || fails == "dial 10" { // cannot fail; is tried again
				continue
			}
			t.Run(fmt.Sprintf("%s, %q fails", kind, fails), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStage(fails)
					v, err := s.start(t, kind)
					if fails == "" {
						if err != nil {
							t.Fatal(err)
						}
						got := slices.DeleteFunc(s.called(), func(c string) bool { return kind == api.StartRestore && strings.HasPrefix(c, "dial") })
						if !slices.Equal(got, steps) {
							t.Errorf("steps %v, want %v", got, steps)
						}
						if p := v.Phases(); p.Spawn != 1 || (p.Load == 2) != (kind == api.StartRestore) {
							t.Errorf("phases %+v", p)
						}
						v.Close()
					} else {
						var start *StartError
						if !errors.As(err, &start) || !errors.Is(err, errStep) || errors.Is(err, context.Canceled) { // nobody has
							t.Errorf("error %v", err)
						}
						if began := fails == "start" || fails == "ready"; began != slices.Equal(start.LastLines, []string{"it begins"}) {
							t.Errorf("its last lines %q", start.LastLines)
						}
					}
					synctest.Wait()
					if left := s.left(); left != "" {
						t.Errorf("left: %s", left)
					}
				})
			})
		}
	}
}

// What ran in a guest that is restored held stands still until it is told of its
// names, after which it is not told again.
func TestHeldUntilCloned(t *testing.T) {
	s := newStage("")
	s.hold("session", 1)
	v, err := s.starter().Restore(t.Context(), RestoreSpec{Spec: s.spec(), Session: stageSession{s}, Held: true})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(s.called(), "clone") {
		t.Error("it was told before")
	}
	if err := v.Clone(t.Context(), guest.Names{Hostname: "h"}, nil); err != nil || s.names.Hostname != "h" {
		t.Errorf("%v; it is called %+v", err, s.names)
	}
	v.Close()
	if left := s.left(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// A SYN that waits for the guest is the first thing that it sees.
func TestConnectionsAreDialledBeforeResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage("")
		spec := s.spec()
		dialled := make(chan struct{}, 2)
		resumable := spec.Dial
		spec.Dial = func(ctx context.Context, port int) (net.Conn, error) {
			dialled <- struct{}{}
			return resumable(ctx, port)
		}
		s.hold("session", 1)
		v, err := s.starter().Restore(t.Context(), RestoreSpec{Spec: spec, Session: waits{stageSession{s}, dialled}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := v.Dial(t.Context(), 8080)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(slices.DeleteFunc(s.called(), func(c string) bool { return c != "dial 8080" })); n != 1 {
			t.Errorf("the server was dialled %d times, want the connection that was there", n)
		}
		v.Close()
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("a connection outlives its microVM")
		}
		if _, err := v.Dial(t.Context(), 8080); !errors.Is(err, ErrConnect) {
			t.Errorf("dialling one that has ended: %v", err)
		}
		if _, err := v.Dial(t.Context(), guest.ExecPort); errors.Is(err, ErrConnect) || !errors.Is(err, errGone) {
			t.Errorf("dialling its agent: %v", err)
		}
		if left := s.left(); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}

// waits is a session whose memory is installed when both were dialled.
type waits struct {
	stageSession
	dialled chan struct{}
}

func (w waits) Install(context.Context) error { <-w.dialled; <-w.dialled; return w.step("install") }

// What ends a microVM is told, and ends what waits for it.
func TestWaitSaysWhy(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*stage)
		want string
	}{
		"vmm":    {func(s *stage) { close(s.done) }, "its VMM ended: signal: killed"},
		"server": {func(s *stage) { close(s.exit) }, "the function's server ended: exit status 3"},
		"memory": {func(s *stage) { close(s.bad); close(s.done) }, "its memory cannot be served any more: " + memory.ErrRead.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage("")
			v, err := s.start(t, api.StartRestore)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			ctx, stop := v.While(t.Context())
			defer stop()
			tc.end(s)
			<-ctx.Done()
			if err := context.Cause(ctx); err.Error() != tc.want {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if err := v.Wait(t.Context()); err.Error() != tc.want {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// No connection is open in a snapshot, and its files are read when the VMM is gone.
func TestSnapshotEndsIt(t *testing.T) {
	s := newStage("")
	v, err := s.start(t, api.StartBoot)
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Dial(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Snapshot(t.Context(), "/state", "/memory"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a connection is open in the snapshot")
	}
	calls := s.called()
	if got := calls[len(calls)-4:]; !slices.Equal(got, []string{"prepare", "pause", "snapshot", "kill"}) {
		t.Errorf("steps %v", got)
	}
	v.Close()
	if left := s.left(); left != "" {
		t.Errorf("left: %s", left)
	}
}
