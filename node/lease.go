package node

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/scale"
)

var _ Lease = (*lease)(nil)

// lease is one request on one instance.
type lease struct {
	inst     *instance
	kind     api.StartKind
	phases   api.Phases
	first    bool // the instance's first request
	began    time.Time
	released atomic.Bool
}

// lend gives a place on a ready instance to the request that arrived then, and
// waited or not. The pool's mutex is held.
func (p *pool) lend(inst *instance, arrived time.Time, waited bool) (*lease, error) {
	l := &lease{inst: inst, kind: api.StartWarm, first: inst.requests == 0 && inst.active == 0, began: time.Now()}
	inst.leases[l] = struct{}{}
	if inst.state == api.InstanceIdle {
		inst.to(api.InstanceBusy)
	}
	inst.active++
	if inst.active >= inst.dep.fn.Concurrency {
		p.dropFree(inst)
	}
	if waited {
		wait := time.Since(arrived)
		if inst.requests == 0 {
			l.kind = inst.kind
			l.phases = during(inst.phases, wait)
		}
		l.phases.Queue = wait - sum(l.phases)
	}
	return l, nil
}

// sum of the phases of a start.
func sum(p api.Phases) time.Duration {
	return p.Slot + p.Spawn + p.Load + p.Install + p.Resume + p.Boot + p.Clone + p.Init
}

// during returns the part of a start that fell into the wait that ended with
// it: a request that came when the start was under way did not wait for all.
func during(p api.Phases, wait time.Duration) api.Phases {
	for _, d := range []*time.Duration{&p.Init, &p.Clone, &p.Boot, &p.Resume, &p.Install, &p.Load, &p.Spawn, &p.Slot} {
		*d = min(*d, wait)
		wait -= *d
	}
	return p
}

func (l *lease) Instance() string      { return l.inst.id }
func (l *lease) Start() api.StartKind  { return l.kind }
func (l *lease) Phases() api.Phases    { return l.phases }
func (l *lease) Gone() <-chan struct{} { return l.inst.gone }

func (l *lease) Ending() <-chan struct{} { return l.inst.ending }

func (l *lease) Transport(h2 bool) http.RoundTripper { return l.inst.vm.Transport(h2) }

// Err says why the instance is gone; nil while it is not.
func (l *lease) Err() error {
	select {
	case <-l.inst.gone:
		return l.inst.err
	default:
		return nil
	}
}

// Release gives the instance back.
func (l *lease) Release(rec api.Invocation) {
	if l.released.Swap(true) {
		return
	}
	inst, p := l.inst, l.inst.pool
	rec.Function, rec.Instance, rec.Start = p.name, inst.id, l.kind
	rec.Snapshot = inst.snapshot
	p.fill(&rec, l)
	p.mu.Lock()
	p.judge(inst, &rec)
	p.giveBack(l, rec.Failure == "")
	p.mu.Unlock()
	p.n.Record(rec)
	if l.first && l.kind == api.StartRestore {
		p.n.shells.want(inst.dep, inst.snapshot)
	}
}

// judge decides by how a request went whether its instance gets others. The mutex
// is held.
func (p *pool) judge(inst *instance, rec *api.Invocation) {
	switch rec.Failure {
	case "":
		inst.timeouts = 0
	case api.FailureFunction:
		// Its server did not answer; that its process has ended may be on its way
		// here still. The next request must not find out again.
		p.end(inst, fmt.Errorf("%w: %s", errNoAnswer, rec.Error), false)
	case api.FailureTimeout:
		if inst.timeouts++; inst.timeouts >= maxTimeouts {
			p.end(inst, fmt.Errorf("%w: %d requests in a row had no answer in time", errHangs, inst.timeouts), false)
			return
		}
		p.suspect(inst)
	case api.FailureClient:
		p.suspect(inst) // it may work on, or wait for, what nobody wants any more
	}
}

// answered says that the invocation has got the function's whole answer, and one
// that is no error: only from such is learned what invocations need. Who gets a
// 404 or a 401 has mostly not come to what the function does.
func answered(rec *api.Invocation) bool {
	return rec.Failure == "" && rec.Status < http.StatusBadRequest
}

// fill adds to the record what only the node knows.
func (p *pool) fill(rec *api.Invocation, l *lease) {
	have, know := &rec.Phases, &l.phases
	have.Queue, have.Slot, have.Spawn, have.Load, have.Install = know.Queue, know.Slot, know.Spawn, know.Load, know.Install
	have.Resume, have.Boot, have.Clone, have.Init = know.Resume, know.Boot, know.Clone, know.Init
	if l.first {
		if l.inst.late != nil {
			rec.Disk = l.inst.late.remote()
		}
		l.inst.vm.WithSession(func(s memory.Session) {
			if answered(rec) {
				s.Responded()
			} else {
				s.Abandoned()
			}
			if l.kind == api.StartRestore {
				stats := s.Stats()
				rec.Memory = &stats
			}
		})
	}
}

// giveBack takes a request off the instance and gives its place to the next. Only
// one that was answered renews the instance's keep-alive and says how long
// requests take; the first of an instance does not, whose guest is cold. The mutex
// is held.
func (p *pool) giveBack(l *lease, answered bool) {
	inst, now := l.inst, time.Now()
	delete(inst.leases, l)
	inst.active--
	inst.requests++
	if answered {
		inst.idleSince = now
		if !l.first && inst.dep.alike(p.current.Load()) {
			p.service = scale.Average(p.service, now.Sub(l.began))
		}
	}
	switch inst.state {
	case api.InstanceDraining:
		p.endIfUnused(inst)
		return
	case api.InstanceStopped: // it died, and who had it has taken this long to say so
		return
	}
	if inst.active == 0 {
		inst.to(api.InstanceIdle)
	}
	switch {
	case inst.alone != nil:
		p.end(inst, errAlone, false)
	case !inst.probation && p.snapshotDue(inst):
		inst.full = true
		p.end(inst, errTakeSnapshot, false)
	case p.yield(inst):
	default:
		p.setFree(inst)
		if inst.active == 0 {
			p.armJanitor()
		}
	}
	if len(p.queue) > 0 || len(p.alone) > 0 {
		p.pump()
	} else {
		p.served()
	}
}
