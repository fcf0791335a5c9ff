package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// Awake is a process that was started ahead, and whose guest is woken while it waits: its agent
// says hello, the connections to it and to the server are made, and its vCPUs are paused
// again. What ran in it stands still, and it does not know yet that it is a clone, or which.
// It is used like any other Shell, also before that is over: it is a start's then to wait for it.
type Awake struct {
	vmm.Shell
	machine       vmm.Machine
	agent, server *ahead // server is nil where none was dialled
	memory        WokenMemory
	over          chan struct{} // closed when its vCPUs are paused, or there is no use for that any more

	mu   sync.Mutex   // held while that is done, too
	used bool         // guarded by mu: it was taken, or ended
	idle []keepAliver // guarded by mu: connections to a guest that may be paused for long
	err  error        // guarded by mu: why it could not be woken
}

// WakeSpec is how the guest of a process that was started ahead is reached.
type WakeSpec struct {
	Dial   func(ctx context.Context, port int) (net.Conn, error) // as Spec's
	Port   int                                                   // of the server; 0: none that is known
	Memory WokenMemory                                           // serves it: the process has loaded device state
}

// WokenMemory is what Wake needs of a memory.Ahead.
type WokenMemory interface {
	Runs()        // is told that the vCPUs run from now on
	Touched() int // pages so far
	Failed() <-chan struct{}
	Err() error
}

var _ WokenMemory = (*memory.Ahead)(nil)

// wakeLimit is how long a guest may take to be woken, serverLimit how much longer the server's
// connection may take than the agent's.
const (
	wakeLimit   = 30 * time.Second
	serverLimit = time.Second
)

// maxWoken bounds the pages that a guest may touch meanwhile: what a process that waits takes is
// counted nowhere. With the agent, that is a thousand.
const maxWoken = 32 << 20 / 4096

// Wake lets the guest of a process that waits run until it has said hello, and returns when its vCPUs run.
// The process is used up: when Wake fails nothing is left; when it turns out later that the guest cannot be woken
// the process ends.
func (s *Starter) Wake(ctx context.Context, sh vmm.Shell, spec WakeSpec) (*Awake, error) {
	m, err := sh.Restore(ctx, func(context.Context, userfaultfd.Guest) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("waking a guest ahead: %w", err)
	}
	a := &Awake{machine: m, memory: spec.Memory, over: make(chan struct{})}
	a.Shell = vmm.NewShell(m, a.handOver, a.end)
	a.agent = dialAhead(func(ctx context.Context, port int) (net.Conn, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, wakeLimit, fmt.Errorf("it takes longer than %v", wakeLimit))
		defer cancel()
		conn, err := spec.Dial(ctx, port)
		if err != nil {
			return nil, err
		}
		a.idles(conn)
		return s.Hear(ctx, conn)
	}, guest.AgentPort)
	if spec.Port != 0 {
		a.server = dialAhead(func(ctx context.Context, port int) (net.Conn, error) {
			conn, err := spec.Dial(ctx, port)
			a.idles(conn)
			return conn, err
		}, spec.Port)
	}
	spec.Memory.Runs()
	if err := m.Resume(ctx); err != nil {
		close(a.over)
		return nil, errors.Join(fmt.Errorf("waking a guest ahead: %w", err), a.Kill())
	}
	go a.settle()
	return a, nil
}

// keepAliver is a connection whose other end the host's kernel asks whether it is there still, and which it ends
// for want of an answer.
type keepAliver interface{ SetKeepAlive(bool) error }

// idles has a connection stand until the guest runs for somebody. conn may be nil.
func (a *Awake) idles(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := conn.(keepAliver); ok && !a.used {
		_ = c.SetKeepAlive(false)
		a.idle = append(a.idle, c)
	}
}

// settle pauses the guest when it has been woken.
func (a *Awake) settle() {
	defer close(a.over)
	select {
	case <-a.agent.done:
	case <-a.memory.Failed():
	case <-a.machine.Done():
		return
	}
	if a.server != nil {
		select {
		case <-a.server.done:
		case <-a.machine.Done():
		case <-time.After(serverLimit):
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used {
		return
	}
	if a.err = a.memory.Err(); a.err == nil {
		a.err = a.agent.err
	}
	if n := a.memory.Touched(); n > maxWoken && a.err == nil {
		a.err = fmt.Errorf("the guest has touched %d pages of its memory: at most %d are allowed", n, maxWoken)
	}
	if a.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), wakeLimit)
		defer cancel()
		a.err = a.machine.Pause(ctx)
	}
	if a.err != nil {
		a.err = errors.Join(a.err, a.machine.Kill())
	}
}

// Settled is closed when the guest has been woken, or cannot be, or there is no use for that any more.
func (a *Awake) Settled() <-chan struct{} { return a.over }

// Err is why the guest could not be woken.
func (a *Awake) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// use says that the process waits no longer.
func (a *Awake) use() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used = true
	for _, c := range a.idle {
		_ = c.SetKeepAlive(true)
	}
}

func (a *Awake) handOver(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) error {
	a.use()
	if err := attach(ctx, userfaultfd.Guest{}); err != nil {
		a.abandon()
		return fmt.Errorf("handing over guest memory: %w", err)
	}
	return nil
}

// abandon closes the connections, and keeps those from being made that are not yet.
func (a *Awake) abandon() {
	a.agent.abandon()
	if a.server != nil {
		a.server.abandon()
	}
}

// end is for one that is not needed.
func (a *Awake) end() error {
	a.use()
	err := a.machine.Kill()
	a.abandon()
	<-a.over
	return err
}
