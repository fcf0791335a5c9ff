package node

import (
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/scale"
)

// scaling is a function's scaling policy at work. The pool's mutex guards it.
type scaling struct {
	policy   scale.Policy
	made     *deployment // that it was made for, or one with the same settings
	steady   bool        // it need not be asked about each request
	decision scale.Decision

	again   *time.Timer // asks anew though nothing has happened; nil: not set
	againAt time.Time

	janitor   *time.Timer // ends what has been idle for too long; nil: not set
	janitorAt time.Time
}

// roomAgain is when a start that nobody waits for, and that found no room, is tried again.
const roomAgain = time.Second

// policyOf returns the function's scaling policy, and makes it anew when what it was made
// of is another. The mutex is held.
func (p *pool) policyOf(d *deployment) scale.Policy {
	s := &p.scaling
	if s.made == d {
		return s.policy
	}
	if s.made == nil || s.made.fn.Scaling != d.fn.Scaling || s.made.fn.KeepAlive != d.fn.KeepAlive || s.made.fn.MemoryMiB != d.fn.MemoryMiB {
		spec, err := scale.Parse(orDefault(d.fn.Scaling, p.n.cfg.Scaling))
		if err != nil { // of a function that was deployed when there was such a policy
			p.n.log.Warn("scaling policy", "function", p.name, "error", err, "instead", scale.Default)
			spec, _ = scale.Parse(scale.Default)
		}
		s.policy = spec.New(scale.Function{KeepAlive: d.fn.KeepAlive.D(), MemoryMiB: d.fn.MemoryMiB}, &p.n.scaleGroup)
	}
	_, s.steady = s.policy.(scale.Steady)
	s.steady = s.steady && targetOf(d) >= d.fn.Concurrency
	s.made = d
	return s.policy
}

// targetOf is how many requests an instance of a deployment is to have at most before others
// are started.
func targetOf(d *deployment) int { return scale.Target(d.fn.Concurrency, d.fn.TargetUtilization) }

// scale asks the policy and starts what it says. The mutex is held.
func (p *pool) scale(d *deployment) {
	s := &p.scaling
	policy, load := p.policyOf(d), p.load(d)
	s.decision = policy.Decide(time.Since(p.n.opened), &load)
	again := s.decision.Again
	for range s.decision.Start {
		if p.launch(d, nil) == nil {
			if len(p.queue) == 0 && (again == 0 || again > roomAgain) {
				again = roomAgain
			}
			break
		}
	}
	p.askAgain(again)
	switch {
	case s.janitor != nil && s.decision.Idle < time.Until(s.janitorAt):
		p.rearmJanitor()
	case s.janitor == nil && load.Idle > 0 && p.alive() > s.decision.Keep:
		p.armJanitor() // fewer are wanted than were
	}
}

// alive counts the instances that do not end. The mutex is held.
func (p *pool) alive() (n int) {
	for _, inst := range p.instances {
		if inst.state != api.InstanceDraining && inst.state != api.InstanceStopped {
			n++
		}
	}
	return n
}

// served tells a policy that wants to know of each request that one has been given an
// instance at once, or was answered. The mutex is held.
func (p *pool) served() {
	if p.scaling.policy != nil && !p.scaling.steady {
		p.pump()
	}
}

// askAgain pumps after a while, or earlier if that is to be. The mutex is held.
func (p *pool) askAgain(after time.Duration) {
	s, at := &p.scaling, time.Now().Add(after)
	if after <= 0 || s.again != nil && !at.Before(s.againAt) {
		return
	}
	if s.again != nil {
		s.again.Stop()
	}
	s.againAt, s.again = at, time.AfterFunc(after, p.lookAgain)
}

func (p *pool) lookAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scaling.again = nil
	p.pump()
}

// takePlace reserves an instance's place in the budget. One that nobody waits for takes
// no room from others. The mutex is held.
func (p *pool) takePlace(d *deployment, awaited bool) bool {
	if !awaited {
		if !p.n.budget.take(d.fn.MemoryMiB, nil) {
			return false
		}
		p.n.budget.adopt(p)
		return true
	}
	if p.claims = !p.n.budget.take(d.fn.MemoryMiB, p); p.claims {
		p.n.spawn(p.n.evictIdle)
		return false
	}
	return true
}

// armJanitor sees to it that idle instances are looked at. The timer is not
// moved at each request: it goes off at the earliest time at which an instance
// can have expired, and looks again. The mutex is held.
func (p *pool) armJanitor() {
	s, d := &p.scaling, p.current.Load()
	if s.janitor != nil || d == nil {
		return
	}
	if s.made != d {
		p.pump()
	}
	if s.decision.Idle < scale.Forever {
		p.sweepIn(s.decision.Idle)
	}
}

func (p *pool) sweepIn(after time.Duration) {
	p.scaling.janitorAt, p.scaling.janitor = time.Now().Add(after), time.AfterFunc(after, p.sweep)
}

// rearmJanitor is for when instances may be kept for another time than before. The mutex
// is held.
func (p *pool) rearmJanitor() {
	if p.scaling.janitor != nil {
		p.scaling.janitor.Stop()
		p.scaling.janitor = nil
		p.armJanitor()
	}
}

func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scaling.janitor = nil
	d := p.current.Load()
	if d == nil || p.closed != nil {
		return
	}
	p.pump()
	idle, since := p.idle()
	ending, next := scale.Ending(since, time.Now(), p.scaling.decision, p.alive())
	for _, i := range ending {
		p.end(idle[i], errExpired, false)
	}
	if p.scaling.janitor != nil {
		p.scaling.janitor.Stop()
		p.scaling.janitor = nil
	}
	if next > 0 {
		p.sweepIn(next)
	}
}

// rank is that of the pool's idle instances when the node needs their memory, if its
// policy has an opinion. The mutex is held.
func (p *pool) rank() (rank float64, ranked bool) {
	if r, ok := p.scaling.policy.(scale.Ranker); ok {
		return r.Rank(), true
	}
	return 0, false
}
