package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"regexp"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/microvm"
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

// instance is one microVM as its function's pool sees it.
type instance struct {
	id      string
	pool    *pool
	dep     *deployment
	created time.Time

	// How to start it.
	wanted api.StartKind // StartBoot, StartRestore, or "" for whichever is possible
	policy string        // of memory; "" for the function's
	alone  *waiter       // the only one that it is for, or nil
	asked  trace.Span    // of the wait that it is started for; nil: none is

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
	visits     int  // connections for further processes and for files
	visited    bool // there was one: it is not as it was deployed any more

	// Written by the one goroutine that starts it, read when it is ready.
	kind       api.StartKind
	phases     api.Phases
	place      *place
	vm         *microvm.VM       // nil until it is ready
	snapshot   string            // id of the one that it was restored from
	noSnapshot bool              // it was booted since there was no usable one
	span       trace.SpanContext // of its start
	releases   []func()
	attempt    attempt       // to start it
	late       *arrivingDisk // its root disk, if that was on its way when it started

	// lastInvocation is the one that it was lent to last, if it takes one at once.
	lastInvocation atomic.Pointer[string]

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
// It is traced as a part of what w waits for; nil is for nobody.
func (p *pool) newInstance(d *deployment, w *waiter) *instance {
	inst := &instance{
		id: newID("i-"), pool: p, dep: d, created: time.Now(),
		state: api.InstanceStarting, gone: make(chan struct{}), ending: make(chan struct{}), leases: map[*lease]struct{}{},
	}
	ctx := p.n.ctx
	if w != nil {
		w.asked, inst.asked = true, w.span
		ctx = trace.ContextWithSpan(ctx, w.caller)
	}
	inst.ctx, inst.cancel = context.WithCancelCause(ctx)
	inst.tell(nil)
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
	i.tell(i.err)
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

// memDir is for the guest memory of one that is booted.
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
