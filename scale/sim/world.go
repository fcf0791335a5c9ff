package sim

import (
	"math/rand/v2"
	"time"

	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/scale"
)

// world is a run under way. Times are nanoseconds since the trace began.
type world struct {
	c       *Config
	now     int64
	minute  int
	target  int // requests in one instance beyond which others are started
	rand    *rand.Rand
	group   scale.Group
	starts  Distribution
	load    scale.Load // of the function that is decided about; used again
	running [mostAges]time.Duration
	under   [mostAges]time.Duration

	functions []function
	instances []instance
	spare     []int32 // free places in instances
	nodes     []node
	blocked   []int32 // functions that wait for memory, first come first served
	events    events

	held  held
	stats stats
}

// mostAges is how many running requests and starts under way a policy is told the ages
// of: with more than these, how long the first of them takes says the same.
const mostAges = 512

// States of an instance, which are the lists of its function that it is in.
const (
	starting = iota
	idle
	busy
	gone
)

// instance of a function. Those in a state are a list, the last used last.
type instance struct {
	function, node   int32
	before, after    int32 // in the list; -1: none
	state            uint8
	served           bool  // a request
	active           int32 // requests that it has
	generation       uint32
	created, changed int64   // changed: when it last got or lost a request, or became ready
	mib              float64 // with its overhead
}

// list of instances, by the order in which they came into it.
type list struct{ first, last, n int32 }

type request struct {
	at, took int64
}

// function is one of the trace's.
type function struct {
	policy    scale.Policy
	ranker    scale.Ranker // policy, if it is one
	lists     [3]list
	roomy     int32 // an instance that serves and could take more; -1: none is known
	active    int32 // requests that instances have
	queue     []request
	head      int // of the queue
	start     time.Duration
	service   time.Duration
	keep      int
	idle      time.Duration
	again     int64 // when to decide; never if it is late
	timer     int64 // the earliest event that there is for it; never: none
	blocked   bool
	base      uint8 // that its snapshot is on, see node.bases
	calls     uint32
	cold      uint32
	mib       float64
	snapshots []uint64 // nodes that have its snapshot, a bit each; nil: none
}

const never = int64(1<<63 - 1)

func newWorld(c *Config) *world {
	w := &world{c: c, target: scale.Target(c.Concurrency, c.Utilization), rand: rand.New(rand.NewPCG(c.Seed, 3)), starts: c.Costs.Starts[c.Start]}
	w.functions = make([]function, len(c.Trace.Functions))
	for i := range w.functions {
		f := &w.functions[i]
		f.mib = c.Trace.Functions[i].MemoryMiB + c.Costs.OverheadMiB
		f.roomy, f.again, f.timer = -1, never, never
		f.base = baseOf(&c.Trace.Functions[i], i, c.Bases)
		for s := range f.lists {
			f.lists[s] = list{-1, -1, 0}
		}
	}
	w.nodes = make([]node, c.Nodes)
	w.stats.init()
	if c.MinInstances > 0 {
		for i := range w.functions {
			w.decide(int32(i))
		}
	}
	return w
}

// policyOf makes a function's policy when it is first needed.
func (w *world) policyOf(id int32) scale.Policy {
	f := &w.functions[id]
	if f.policy == nil {
		f.policy = w.c.Policy.New(scale.Function{KeepAlive: w.c.KeepAlive, MemoryMiB: int(f.mib)}, &w.group)
		f.ranker, _ = f.policy.(scale.Ranker)
	}
	return f.policy
}

// arrive is a request.
func (w *world) arrive(in *trace.Invocation) {
	id := int32(in.Function)
	f := &w.functions[id]
	f.calls++
	w.stats.arrived++
	if f.head == len(f.queue) {
		if i := w.free(f); i >= 0 {
			w.serve(i, request{int64(in.At), int64(in.Took)}, false)
			w.decide(id)
			return
		}
	}
	f.queue = append(f.queue, request{int64(in.At), int64(in.Took)})
	w.decide(id)
}

// idling counts an instance's memory among that of idle ones, or no longer.
func (w *world) idling(in *instance, mib float64) {
	w.held.idle += mib
	w.nodes[in.node].idle += mib
}

// free returns the instance that the next request goes to: one that serves and is below its
// target, else the idle one that was used last, else the one with the fewest requests; -1: none.
func (w *world) free(f *function) int32 {
	if i := f.roomy; i >= 0 {
		in := &w.instances[i]
		if in.state == busy && int(in.active) < w.target {
			return i
		}
		f.roomy = -1
	}
	if i := f.lists[idle].last; i >= 0 || w.target == w.c.Concurrency {
		return i
	}
	least := int32(-1) // as scale.Choose says
	for i := f.lists[busy].last; i >= 0; i = w.instances[i].before {
		if n := w.instances[i].active; int(n) < w.c.Concurrency && (least < 0 || n < w.instances[least].active) {
			least = i
		}
	}
	return least
}

// serve gives a request to an instance that has room.
func (w *world) serve(i int32, r request, waited bool) {
	in := &w.instances[i]
	f := &w.functions[in.function]
	cold := waited && !in.served
	in.active++
	f.active++
	if in.state == idle {
		w.move(i, busy)
		w.idling(in, -in.mib)
	} else {
		in.changed = w.now
	}
	if int(in.active) < w.target {
		f.roomy = i
	}
	in.served = true
	took := r.took + int64(w.c.Costs.Warm.At(w.chance())*1e9)
	if cold {
		f.cold++
	}
	w.stats.call(w.now-r.at, took, cold)
	w.events.push(event{w.now + took, i, done})
}

// chance is a number from 0 to 1; only where there is something to draw.
func (w *world) chance() float64 {
	if len(w.c.Costs.Warm) < 2 {
		return 0
	}
	return w.rand.Float64()
}

// done is a request's end.
func (w *world) done(i int32) {
	in := &w.instances[i]
	id := in.function
	f := &w.functions[id]
	in.active--
	f.active--
	w.stats.answered++
	f.service = scale.Average(f.service, time.Duration(w.now-in.changed))
	if f.head < len(f.queue) {
		w.dequeue(f, i)
	}
	if in.active == 0 {
		w.move(i, idle)
		w.idling(in, in.mib)
	} else if int(in.active) < w.target {
		f.roomy = i
	}
	w.decide(id)
	w.unblock()
}

// dequeue serves those who wait, as far as the instance has room.
func (w *world) dequeue(f *function, i int32) {
	in := &w.instances[i]
	for f.head < len(f.queue) && int(in.active) < w.c.Concurrency {
		r := f.queue[f.head]
		f.head++
		if w.now-r.at > int64(w.c.QueueTimeout) {
			w.stats.lost++
			continue
		}
		w.serve(i, r, true)
	}
	if f.head == len(f.queue) {
		f.queue, f.head = f.queue[:0], 0
		if cap(f.queue) > 64 {
			f.queue = nil
		}
	} else if f.head > 64 && f.head > len(f.queue)/2 {
		f.queue = append(f.queue[:0], f.queue[f.head:]...)
		f.head = 0
	}
}

// ready is a start's end.
func (w *world) ready(i int32) {
	in := &w.instances[i]
	id := in.function
	f := &w.functions[id]
	f.start = scale.Average(f.start, time.Duration(w.now-in.created))
	w.move(i, idle)
	w.idling(in, in.mib)
	if f.head < len(f.queue) {
		w.dequeue(f, i)
	}
	w.decide(id)
	w.unblock()
}

// decide asks a function's policy and does what it says.
func (w *world) decide(id int32) {
	f := &w.functions[id]
	policy := w.policyOf(id)
	w.fill(f)
	d := policy.Decide(time.Duration(w.now), &w.load)
	f = &w.functions[id]
	f.keep, f.idle, f.again = d.Keep, d.Idle, never
	if d.Again > 0 {
		f.again = w.now + int64(d.Again)
	}
	waiting := len(f.queue) - f.head
	for range d.Start {
		if !w.launch(id) {
			w.block(id, waiting)
			break
		}
		if waiting == 0 {
			w.stats.ahead++
		}
	}
	w.expire(id)
}

// fill describes the function's load.
func (w *world) fill(f *function) {
	l := &w.load
	waiting := len(f.queue) - f.head
	*l = scale.Load{
		Waiting: waiting, Starting: int(f.lists[starting].n), Busy: int(f.lists[busy].n), Idle: int(f.lists[idle].n), Active: int(f.active),
		Concurrency: w.c.Concurrency, Target: w.target, Min: w.c.MinInstances, Max: w.c.MaxInstances, Start: f.start, Service: f.service,
	}
	l.Free = (l.Busy+l.Idle)*w.c.Concurrency - l.Active
	if waiting == 0 {
		return
	}
	l.Running, l.Underway = w.running[:0], w.under[:0]
	most := mostAges
	if f.service <= f.start+f.start/2 {
		// Each that runs will have ended within what scale.Starts lets a request wait, so
		// that as many as wait decide it.
		most = min(most, waiting+8)
	}
	for i := f.lists[busy].last; i >= 0 && len(l.Running) < most; i = w.instances[i].before {
		in := &w.instances[i]
		for k := int32(0); k < in.active && len(l.Running) < most; k++ {
			l.Running = append(l.Running, time.Duration(w.now-in.changed))
		}
	}
	for i := f.lists[starting].first; i >= 0 && len(l.Underway) < mostAges; i = w.instances[i].after {
		l.Underway = append(l.Underway, time.Duration(w.now-w.instances[i].created))
	}
}

// expire ends what the last decision lets go, and sees to it that the function is looked
// at when the next could go or a decision is due.
func (w *world) expire(id int32) {
	f := &w.functions[id]
	next := f.again
	for {
		all := int(f.lists[starting].n + f.lists[idle].n + f.lists[busy].n)
		i := f.lists[idle].first
		if i < 0 || all <= f.keep || f.idle == scale.Forever {
			break
		}
		if at := w.instances[i].changed + int64(f.idle); at > w.now {
			next = min(next, at)
			break
		}
		w.end(i)
	}
	if next < f.timer {
		f.timer = next
		w.events.push(event{next, id, look})
	}
}

// look is a timer of a function.
func (w *world) look(id int32) {
	f := &w.functions[id]
	if f.timer != w.now {
		return // an earlier one has taken its place
	}
	f.timer = never
	if f.again <= w.now {
		w.decide(id)
	} else {
		w.expire(id)
	}
	w.unblock()
}

// move puts an instance at the end of the list of a state.
func (w *world) move(i int32, state uint8) {
	in := &w.instances[i]
	f := &w.functions[in.function]
	w.unlink(f, in)
	l := &f.lists[state]
	in.before, in.after, in.state = l.last, -1, state
	if l.last >= 0 {
		w.instances[l.last].after = i
	} else {
		l.first = i
	}
	l.last = i
	l.n++
	in.changed = w.now
}

func (w *world) unlink(f *function, in *instance) {
	if in.state == gone {
		return
	}
	l := &f.lists[in.state]
	if in.before >= 0 {
		w.instances[in.before].after = in.after
	} else {
		l.first = in.after
	}
	if in.after >= 0 {
		w.instances[in.after].before = in.before
	} else {
		l.last = in.before
	}
	l.n--
}

// until lets happen what does before then.
func (w *world) until(then int64) {
	for len(w.events.heap) > 0 && w.events.heap[0].at <= then {
		w.step()
	}
	w.advance(then)
}

func (w *world) step() {
	e := w.events.pop()
	w.advance(e.at)
	switch e.kind {
	case done:
		w.done(e.id)
	case ready:
		w.ready(e.id)
	case look:
		w.look(e.id)
	}
}

func (w *world) advance(to int64) {
	if end := int64(w.c.Until); end > w.now && end <= to {
		w.held.advance(end - w.now)
		w.now = end
		w.measure()
	}
	w.held.advance(to - w.now)
	w.now = to
}

// finish answers those who still wait, and counts those whom nobody can answer any more.
func (w *world) finish() {
	for w.pending() > 0 && len(w.events.heap) > 0 {
		w.step()
	}
	w.stats.unserved = w.pending()
}

// pending are the requests that wait or are served.
func (w *world) pending() int64 { return w.stats.arrived - w.stats.answered - w.stats.lost }
