package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/vmm"
)

// Reasons for which an instance ends that are nobody's fault.
var (
	errExpired      = errors.New("idle for longer than its keep-alive")
	errEvicted      = errors.New("idle, and another function needs its place")
	errReplaced     = errors.New("its function was deployed anew")
	errRemoved      = errors.New("its function was removed")
	errAlone        = errors.New("the one invocation that it was for is over")
	errHangs        = errors.New("it hangs")
	errNoAnswer     = errors.New("its server gave no answer")
	errTakeSnapshot = errors.New("it has answered enough invocations for a snapshot")
)

// instance is one microVM and all that belongs to it.
type instance struct {
	id      string
	pool    *pool
	dep     *deployment
	created time.Time

	// How to start it.
	wanted api.StartKind // StartBoot, StartRestore, or "" for whichever is possible
	policy string        // of memory; "" for the function's
	alone  *waiter       // the only one that it is for, or nil

	// Guarded by pool.mu.
	state      api.InstanceState
	active     int
	requests   int64
	idleSince  time.Time
	free       bool // in pool.free
	full       bool // takes no more requests: its snapshot is due
	leaving    bool // ends since others need its place
	readySince time.Time
	grace      bool      // give the function's server time to end
	probation  bool      // takes none until it has shown that it answers
	suspected  time.Time // when probation began
	timeouts   int       // requests that it did not answer in time, in a row
	leases     map[*lease]struct{}
	info       api.Instance

	// Written by the one goroutine that starts it, read when it is ready.
	kind       api.StartKind
	phases     api.Phases
	home       string // id of the shell that it took over; "": its own
	slot       *network.Slot
	machine    vmm.Machine
	session    memory.Session
	agent      Agent
	snapshot   string // id of the one that it was restored from
	noSnapshot bool   // it was booted since there was no usable one
	transports *transports
	memoryFile string
	tail       tail // last lines of the function, for errors
	releases   []func()

	// lastInvocation is the one that it was lent to last, if it takes one at once.
	lastInvocation atomic.Pointer[string]

	sessionMu sync.Mutex // held to use session from other goroutines, and to change it

	// ctx ends when the instance must; its cause is the reason. gone is closed
	// when it no longer serves, err set before.
	ctx    context.Context
	cancel context.CancelCauseFunc
	gone   chan struct{}
	err    error
	ending chan struct{} // closed when it begins to drain
}

var instanceRE = regexp.MustCompile(`^i-[0-9a-f]{16}$`)

func newID(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + hex.EncodeToString(b[:])
}

// newInstance makes an instance in state starting. The caller has reserved its
// place in the budget, and must run it.
func (p *pool) newInstance(d *deployment) *instance {
	inst := &instance{
		id: newID("i-"), pool: p, dep: d, created: time.Now(),
		state: api.InstanceStarting, gone: make(chan struct{}), ending: make(chan struct{}), leases: map[*lease]struct{}{},
	}
	inst.ctx, inst.cancel = context.WithCancelCause(p.n.ctx)
	return inst
}

// to changes the state; the pool's mutex is held. A step that does not exist is
// a bug, which is reported and not taken.
func (i *instance) to(state api.InstanceState) bool {
	s, err := next(i.state, state)
	if err != nil {
		i.pool.n.log.Error("instance state", "function", i.pool.name, "instance", i.id, "error", err)
		return false
	}
	i.state = s
	if s == api.InstanceDraining {
		close(i.ending)
	}
	return true
}

// returns says that the places of the instance's requests will be others' after
// them. The pool's mutex is held.
func (i *instance) returns() bool {
	return !i.full && (i.state == api.InstanceBusy || i.state == api.InstanceIdle)
}

// describe needs the pool's mutex.
func (i *instance) describe() api.Instance {
	out := i.info // what its start found out
	out.ID, out.Function, out.State, out.Created = i.id, i.pool.name, i.state, i.created
	out.Requests, out.Active, out.Probation = i.requests, i.active, i.probation
	if out.Start == "" {
		out.Start = i.wanted
	}
	return out
}

// runDir is the private directory of the instance's process.
func (i *instance) runDir() string { return i.pool.n.machineDir(orDefault(i.home, i.id)) }
func (i *instance) memDir() string { return i.pool.n.cfg.path("mem", i.id) }

// onRelease adds a step to the instance's tear-down, which goes backwards.
func (i *instance) onRelease(f func()) { i.releases = append(i.releases, f) }

// release ends the machine and gives back all that the instance holds. Called
// once, by the goroutine that runs the instance.
func (i *instance) release() {
	for k := len(i.releases) - 1; k >= 0; k-- {
		i.releases[k]()
	}
	i.releases = nil
}

// serving is the id of the invocation that what the function writes belongs to,
// as far as that can be known: the one that the instance was given last, if it
// takes one at a time. "" is none.
func (i *instance) serving() string {
	if id := i.lastInvocation.Load(); id != nil {
		return *id
	}
	return ""
}

func (i *instance) setSession(s memory.Session) {
	i.sessionMu.Lock()
	defer i.sessionMu.Unlock()
	i.session = s
}

// withSession calls f with the memory session, if it is still there, and keeps
// it there meanwhile.
func (i *instance) withSession(f func(memory.Session)) {
	i.sessionMu.Lock()
	defer i.sessionMu.Unlock()
	if i.session != nil {
		f(i.session)
	}
}

// watch waits until the instance must end, and says why.
func (i *instance) watch(ctx context.Context) error {
	var done, failed, exited <-chan struct{} // nil: never
	if i.machine != nil {
		done = i.machine.Done()
	}
	if i.session != nil && !i.session.Mapped() {
		failed = i.session.Failed()
	}
	if i.agent != nil {
		exited = i.agent.Exited()
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-failed:
		return fmt.Errorf("its memory cannot be served any more: %w", orUnknown(i.session.Err()))
	case <-done:
		// A fault that cannot be served may be why the machine is gone.
		select {
		case <-failed:
			return fmt.Errorf("its memory cannot be served any more: %w", orUnknown(i.session.Err()))
		default:
		}
		return fmt.Errorf("its VMM ended: %w", orUnknown(i.machine.Err()))
	case <-exited:
		return fmt.Errorf("%w: %w", ErrExited, orUnknown(i.agent.ExitErr()))
	}
}

var errUnknown = errors.New("without saying why")

func orUnknown(err error) error {
	if err == nil {
		return errUnknown
	}
	return err
}

// guard derives a context that ends, with the reason, when the machine or its
// memory fails: so that nothing waits for a guest that is gone. The agent's own
// calls tell when the function exits.
func (i *instance) guard(ctx context.Context) (context.Context, func()) {
	machineOnly := &instance{machine: i.machine, session: i.session}
	return machineOnly.whole(ctx)
}

// whole is guard for an instance whose function must run, too.
func (i *instance) whole(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		cancel(i.watch(ctx))
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}
