package node

import (
	"context"
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	// probeLimit is how long an instance on probation has to show that it answers.
	// A server that takes one request at a time works on the abandoned one first.
	probeLimit = 10 * time.Second
	// maxTimeouts is how many requests in a row an instance may leave without an
	// answer, whatever it answers to probes in between: there are servers that
	// answer those beside a handler that hangs.
	maxTimeouts = 2
)

// suspect puts an instance on probation whose request was left or not answered in
// time: it is not lent until it has answered a probe, and ends if it does not.
// Others serve meanwhile, and may be started. The mutex is held.
func (p *pool) suspect(inst *instance) {
	if inst.probation || inst.alone != nil || inst.state == api.InstanceDraining || inst.state == api.InstanceStopped {
		return
	}
	inst.probation, inst.suspected = true, time.Now()
	p.dropFree(inst)
	p.n.spawn(func() { p.probe(inst) }) // if the node drains it ends anyway
}

// probe ends an instance's probation.
func (p *pool) probe(inst *instance) {
	ctx, cancel := context.WithTimeoutCause(inst.ctx, probeLimit, fmt.Errorf("no answer to a probe within %v", probeLimit))
	defer cancel()
	err := inst.vm.Answers(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if inst.ctx.Err() == nil {
			p.end(inst, fmt.Errorf("%w: after a request that was left or not answered in time: %w", errHangs, err), false)
		}
		return
	}
	inst.probation = false
	if inst.returns() && inst.active < inst.dep.fn.Concurrency {
		p.setFree(inst)
		p.armJanitor()
	}
	p.pump()
}
