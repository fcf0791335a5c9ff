package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing"
)

// waiter is a request that has no instance yet. All but result is guarded by
// the pool's mutex.
type waiter struct {
	opts    AcquireOptions
	caller  trace.Span // its request's, of which an instance that is started for it is
	span    trace.Span // of the wait
	asked   bool       // an instance is started for it
	arrived time.Time
	inst    *instance // that is being started for it alone
	left    bool      // its request is gone
	result  chan granted
}

type granted struct {
	lease *lease
	err   error
}

// grant ends the wait. The pool's mutex is held.
func (w *waiter) grant(l *lease, err error) {
	select {
	case w.result <- granted{l, err}:
	default: // it has one already
	}
}

// Acquire lends an instance of the function: an idle one at once, or else the
// request waits in the function's queue while instances are started, as far as
// the function's and the node's limits let them.
func (n *Node) Acquire(ctx context.Context, function string, o AcquireOptions) (Lease, error) {
	l, err := n.acquire(ctx, function, o)
	if err != nil {
		return nil, err
	}
	if l.inst.dep.fn.Concurrency == 1 && o.Invocation != "" {
		l.inst.lastInvocation.Store(&o.Invocation)
	}
	return l, nil
}

func (n *Node) acquire(ctx context.Context, function string, o AcquireOptions) (l *lease, err error) {
	arrived, caller := time.Now(), trace.SpanFromContext(ctx)
	ctx, span := tracing.Start(ctx, "acquire")
	defer func() { tracing.End(span, err) }()
	p := n.pool(function)
	if p == nil {
		return nil, fmt.Errorf("%q: %w", function, ErrNoFunction)
	}
	p.mu.Lock()
	if p.closed != nil {
		p.mu.Unlock()
		return nil, p.closed
	}
	if !o.alone() && len(p.queue) == 0 {
		if inst := p.takeFree(); inst != nil {
			l, err := p.lend(inst, arrived, false)
			p.served()
			p.mu.Unlock()
			return l, err
		}
	}
	w := &waiter{opts: o, caller: caller, span: span, arrived: arrived, result: make(chan granted, 1)}
	err = p.enqueue(w)
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case g := <-w.result:
		l, err = g.lease, g.err
	case <-ctx.Done():
		l, err = p.leave(w, context.Cause(ctx))
	}
	if l != nil && l.kind != api.StartWarm { // which may have been started for another
		span.AddLink(trace.Link{SpanContext: l.inst.span})
	}
	return l, err
}

// enqueue makes the request wait, and starts what it needs. The mutex is held.
func (p *pool) enqueue(w *waiter) error {
	d := p.current.Load()
	if d == nil {
		return fmt.Errorf("%q: %w", p.name, ErrNoFunction)
	}
	if w.opts.Start == api.StartWarm {
		return fmt.Errorf("%q: %w", p.name, ErrNoneWarm)
	}
	if len(p.queue)+len(p.alone) >= d.fn.QueueLimit {
		load := p.load(d)
		return &QueueFullError{Function: p.name, Limit: d.fn.QueueLimit, After: load.Clears()}
	}
	if err := p.n.budget.fits(d.fn.MemoryMiB); err != nil {
		return fmt.Errorf("%q: %w", p.name, err)
	}
	if w.opts.alone() {
		p.alone = append(p.alone, w)
	} else {
		p.queue = append(p.queue, w)
	}
	p.pump()
	return nil
}

// leave takes a request out of the queue that waits no longer. If it has been
// given an instance at that very moment, it keeps it.
func (p *pool) leave(w *waiter, why error) (*lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case g := <-w.result:
		return g.lease, g.err
	default:
	}
	w.left = true
	same := func(other *waiter) bool { return other == w }
	p.queue = slices.DeleteFunc(p.queue, same)
	p.alone = slices.DeleteFunc(p.alone, same)
	if p.claims && len(p.queue)+len(p.alone) == 0 {
		p.withdraw()
	}
	if w.inst != nil {
		w.inst.cancel(errAlone)
	}
	return nil, fmt.Errorf("waiting for an instance of %q: %w", p.name, why)
}
