// Package microvm is the life of one microVM: it is booted, or restored from a
// snapshot; it is asked whether it answers, carries connections, may be paused,
// may become a snapshot, and ends. It is the fourth station of a cold invocation, puts
// memory, vmm and guest in sequence, and knows of no function, pool, database or
// gateway: package node does, and gives it what is shared and scarce (a slot, a root
// disk, a directory).
//
// What happens in which order, and in parallel, is in Boot and Restore.
package microvm

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/vmm"
)

var (
	// ErrConnect is wrapped when the server in the guest takes no connection: the
	// request was not sent, nor its body touched.
	ErrConnect = errors.New("connecting to the function's server")
	// ErrExited is wrapped by a microVM's end that was its server's doing.
	ErrExited = errors.New("the function's server ended")
)

// Starter starts microVMs: it is what all those of a process have in common.
type Starter struct {
	VMM     vmm.VMM
	Connect ConnectFunc
	// Hear is guest.Wake; only Wake needs it.
	Hear func(ctx context.Context, conn net.Conn) (net.Conn, error)
	Log  *slog.Logger
}

// ConnectFunc greets the agent at the other end of conn, which it owns from then on,
// and tells it that it is that clone, unless nil. It calls logs for each line of the
// server, never two at once.
type ConnectFunc func(ctx context.Context, conn net.Conn, logs LogFunc, c *guest.Clone) (Agent, error)

// Connect is what Starter's usually is.
func Connect(ctx context.Context, conn net.Conn, logs LogFunc, c *guest.Clone) (Agent, error) {
	var s *guest.Session
	var err error
	if c == nil {
		s, err = guest.Connect(ctx, conn, logs)
	} else {
		s, err = guest.ConnectClone(ctx, conn, logs, *c)
	}
	if err != nil {
		return nil, err // a nil *guest.Session would be no nil Agent
	}
	return s, nil
}

// LogFunc takes one line that the server wrote, without its newline; stream is
// "stdout" or "stderr". The line is only valid during the call.
type LogFunc func(stream string, line []byte)

// Agent is what a microVM needs of the host's side of the agent protocol.
type Agent interface {
	// Start tells a booted agent what to run; Ready returns when the server
	// answers, or with how it exited instead.
	Start(ctx context.Context, s guest.Start) error
	Ready(ctx context.Context) error
	// Clone tells a restored agent that it is a clone, and returns when it has
	// taken that in.
	Clone(ctx context.Context, c guest.Clone) error
	// Prepare readies the guest for its snapshot.
	Prepare(ctx context.Context) error
	// Stop sends the server its stop signal and returns when it has exited.
	Stop(ctx context.Context, grace time.Duration) error
	// Exited is closed when the server's process has ended or the agent is lost;
	// ExitErr says which, and how.
	Exited() <-chan struct{}
	ExitErr() error
	Close() error
}

// Spec is one microVM that is to be. All it holds must stay until Close.
type Spec struct {
	ID      string     // what the guest is told that it is: letters, digits and '-'
	Machine vmm.Config // its shape
	Host    vmm.Host   // where and as whom its process runs
	// Dial reaches the guest's port: from where the network that it was given can
	// be reached. It waits until a VMM is there.
	Dial   func(ctx context.Context, port int) (net.Conn, error)
	Server Server
	Logs   LogFunc // for what it writes; nil for nowhere
	// Phase is told of each phase of the start when it is over, by its name in
	// api.PhaseNames; nil: nobody is.
	Phase func(name string, took time.Duration)
}

// Server is what the microVM is for: it listens in the guest.
type Server struct {
	Name        string // host name in requests that ask whether it answers
	Port        int    // 0: it serves none that is known
	ReadyPath   string // answers with a 2xx when it is ready; "" for any answer
	CloneHook   string // path that a clone POSTs to before it is ready; "" for none
	Connections int    // that stay open between requests, at most
}

// VM is a microVM that was started. Its methods may be called from many goroutines,
// but for Snapshot and Close, after which nothing else may be begun.
type VM struct {
	spec    Spec
	machine vmm.Machine
	agent   Agent
	phases  api.Phases
	conns   *connections
	tail    tail
	log     *slog.Logger

	sessionMu sync.Mutex     // held to use the session from outside, and to change it
	session   memory.Session // nil: it was booted, or is closed

	releases []func() // what Close does, backwards
}

// Phases are those of its start that it knows of, from Spawn to Clone or Init.
func (v *VM) Phases() api.Phases { return v.phases }

// PID is that of its VMM.
func (v *VM) PID() int { return v.machine.PID() }

// LastLines are those that its server wrote, for errors.
func (v *VM) LastLines() []string { return v.tail.lines() }

// WithSession calls f with the memory session, if there is one still, and keeps
// it there meanwhile.
func (v *VM) WithSession(f func(memory.Session)) {
	v.sessionMu.Lock()
	defer v.sessionMu.Unlock()
	if v.session != nil {
		f(v.session)
	}
}

func (v *VM) setSession(s memory.Session) {
	v.sessionMu.Lock()
	defer v.sessionMu.Unlock()
	v.session = s
}

// Pause stops the vCPUs, Resume lets them run again.
func (v *VM) Pause(ctx context.Context) error  { return v.machine.Pause(ctx) }
func (v *VM) Resume(ctx context.Context) error { return v.machine.Resume(ctx) }

// Stop asks the server to end, and returns when it has, or the grace is over.
func (v *VM) Stop(ctx context.Context, grace time.Duration) error { return v.agent.Stop(ctx, grace) }

// Close ends the microVM, and returns when nothing of it is left. It is called
// once.
func (v *VM) Close() {
	for k := len(v.releases) - 1; k >= 0; k-- {
		v.releases[k]()
	}
	v.releases = nil
}

func (v *VM) onClose(f func()) { v.releases = append(v.releases, f) }
