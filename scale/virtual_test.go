package scale

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world is one function under a policy in virtual time: as plain as can be, so that
// it can be believed.
type world struct {
	t      *testing.T
	p      Policy
	now    time.Duration
	start  time.Duration // of an instance
	per    int           // requests at once
	target int           // beyond which others are started
	least  int
	most   int
	stages []stage // what will happen, in order

	waiting []time.Duration // for how long each will take
	there   []*inst
	served  int
	again   time.Duration // when to ask; 0: never
	last    Decision
	asked   int
}

type inst struct {
	ready     bool
	created   time.Duration
	active    int
	idleSince time.Duration
}

type stage struct {
	at time.Duration
	do func()
}

func (w *world) at(d time.Duration, do func()) {
	i, _ := slices.BinarySearchFunc(w.stages, stage{at: d + 1}, func(a, b stage) int { return cmp.Compare(a.at, b.at) })
	w.stages = slices.Insert(w.stages, i, stage{d, do})
}

func (w *world) load() *Load {
	l := &Load{Waiting: len(w.waiting), Concurrency: w.per, Target: w.target, Min: w.least, Max: w.most, Start: w.start, Service: time.Second}
	for _, i := range w.there {
		switch {
		case !i.ready:
			l.Starting++
			l.Underway = append(l.Underway, w.now-i.created)
		case i.active > 0:
			l.Busy++
			for range i.active {
				l.Running = append(l.Running, time.Second/2)
			}
		default:
			l.Idle++
		}
		if i.ready {
			l.Active += i.active
			l.Free += w.per - i.active
		}
	}
	return l
}

// settle gives requests to instances, asks the policy and does what it says.
func (w *world) settle() {
	for len(w.waiting) > 0 {
		var room []*inst
		var active []int
		for _, i := range w.there {
			if i.ready && i.active < w.per {
				room, active = append(room, i), append(active, i.active)
			}
		}
		i := Choose(active, w.target)
		if i < 0 {
			break
		}
		in, took := room[i], w.waiting[0]
		w.waiting = w.waiting[1:]
		in.active++
		w.at(w.now+took, func() {
			in.active--
			in.idleSince = w.now
			w.served++
		})
	}
	l := w.load()
	w.asked++
	w.last = w.p.Decide(w.now, l)
	d := w.last
	if _, windowed := w.p.(*kpaPolicy); !windowed && l.Active+l.Waiting > w.target*(len(w.there)+d.Start) && len(w.there)+d.Start < w.most && w.target < w.per {
		w.t.Fatalf("at %v: %+v leaves instances with more than %d requests each: %+v", w.now, d, w.target, l)
	}
	if d.Start > 0 && len(w.there)+d.Start > max(w.most, 0) {
		w.t.Fatalf("at %v: %+v starts more than max of %d: %+v", w.now, d, w.most, l)
	}
	for range d.Start {
		in := &inst{created: w.now}
		w.there = append(w.there, in)
		w.at(w.now+w.start, func() { in.ready, in.idleSince = true, w.now })
	}
	w.expire()
	if d.Again < 0 {
		w.t.Fatalf("at %v: again in %v", w.now, d.Again)
	}
	w.again = 0
	if d.Again > 0 {
		w.again = w.now + d.Again
	}
}

// expire ends what the last decision lets go.
func (w *world) expire() {
	slices.SortStableFunc(w.there, func(a, b *inst) int { return cmp.Compare(a.idleSince, b.idleSince) })
	spare := len(w.there) - w.last.Keep
	w.there = slices.DeleteFunc(w.there, func(i *inst) bool {
		ends := spare > 0 && i.ready && i.active == 0 && w.now-i.idleSince >= w.last.Idle
		if ends {
			spare--
		}
		return ends
	})
}

// next moves to when something happens; false: nothing will.
func (w *world) next() bool {
	when := Forever
	if len(w.stages) > 0 {
		when = w.stages[0].at
	}
	if w.again > 0 {
		when = min(when, w.again)
	}
	if len(w.there) > w.last.Keep && w.last.Idle < Forever {
		for _, i := range w.there {
			if i.ready && i.active == 0 {
				when = min(when, max(w.now, i.idleSince+w.last.Idle))
			}
		}
	}
	if when == Forever {
		return false
	}
	w.now = when
	for len(w.stages) > 0 && w.stages[0].at <= w.now {
		do := w.stages[0].do
		w.stages = w.stages[1:]
		do()
	}
	w.settle()
	return true
}

// Under every policy and random loads: there are never more instances than the most,
// never fewer than the least once they could be, none is started while nobody waits
// but for the least or ahead, every request is served, and time comes to an end.
func TestPoliciesOverRandomLoads(t *testing.T) {
	specs := append(Names(), "fixed:keep-alive=0s", "kpa:stable-window=6s,scale-down-delay=20s,activation-scale=3", "hybrid:range=5m,cv=0", "hybrid:range=1m,outside=0", "break-even:learn=1")
	for _, spec := range specs {
		for seed := range uint64(40) {
			t.Run(fmt.Sprintf("%s/%d", spec, seed), func(t *testing.T) { randomLoad(t, spec, seed) })
		}
	}
}

func randomLoad(t *testing.T, spec string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	w := &world{t: t, p: mustNew(t, spec, Function{KeepAlive: time.Duration(r.IntN(120)) * time.Second, MemoryMiB: 128}, nil),
		start: time.Duration(1+r.IntN(5000)) * time.Millisecond, per: 1 + r.IntN(4), most: 1 + r.IntN(8)}
	w.least = r.IntN(w.most + 1)
	w.target = Target(w.per, r.Float64())
	n := 200
	at := time.Duration(0)
	for range n {
		at += time.Duration(r.ExpFloat64() * []float64{1e6, 1e8, 1e9, 1e11}[r.IntN(4)])
		took := time.Duration(1 + r.ExpFloat64()*1e9)
		w.at(at, func() { w.waiting = append(w.waiting, took) })
	}
	w.settle()
	for w.served < n {
		if !w.next() {
			t.Fatalf("%d requests are forgotten after %v: %+v", n-w.served, w.now, w.load())
		}
		if len(w.there) > w.most {
			t.Fatalf("%d instances, at most %d", len(w.there), w.most)
		}
		if len(w.there) < w.least {
			t.Fatalf("at %v: %d instances, at least %d: %+v", w.now, len(w.there), w.least, w.last)
		}
		if w.asked > 200*n+int(w.now/time.Second) {
			t.Fatalf("asked %d times by %v", w.asked, w.now)
		}
	}
	// Nobody comes any more: no start for a day, but for one ahead, and all go that are
	// kept for a time.
	starts := 0
	end := w.now + 24*time.Hour
	for w.next() && w.now < end {
		starts += w.last.Start
	}
	// What Knative's wants follows a window: it may want more than there are for a while.
	if _, windowed := w.p.(*kpaPolicy); starts > 1 && !windowed {
		t.Errorf("%d starts for nobody", starts)
	}
	if left := len(w.there); left > w.least && w.last.Idle < Forever {
		t.Errorf("%d instances are left, want %d: %+v", left, w.least, w.last)
	}
}

// No start while nobody waits: every decision without waiting requests and with the
// least there starts nothing, unless its policy starts ahead.
func TestNoStartWithoutNeed(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, spec := range []string{"none", "fixed", "greedy-dual", "break-even"} {
		p := mustNew(t, spec, Function{KeepAlive: time.Minute}, nil)
		now := time.Duration(0)
		for range 20000 {
			now += time.Duration(r.ExpFloat64() * 1e9)
			l := &Load{Waiting: r.IntN(3), Starting: r.IntN(3), Busy: r.IntN(3), Idle: r.IntN(3), Concurrency: 1, Max: r.IntN(10)}
			l.Active, l.Free = l.Busy, l.Idle
			if l.Free > 0 {
				l.Waiting = 0
			}
			d := p.Decide(now, l)
			if d.Start > l.Waiting || d.Start > 0 && d.Start+l.Starting > l.Waiting {
				t.Fatalf("%s: %+v starts %d", spec, l, d.Start)
			}
		}
	}
}
