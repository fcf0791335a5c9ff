package scale

import (
	"math"
	"time"
)

// kpa is the autoscaler of Knative Serving: pkg/autoscaler/scaling/autoscaler.go
// for how many are wanted, pkg/reconciler/autoscaling/kpa/scaler.go for the way to
// zero. Names and defaults of parameters are those of its config-autoscaler, but
// for percentages, which are shares here.
//
// What is different: the requests in flight are known exactly, where Knative asks
// its pods once a second; the gateway is on the way of every request, as
// Knative's activator is with a target-burst-capacity of -1; and an instance with a
// request ends after it, where Knative takes any pod.
var kpa = Kind{
	Name: "kpa", Summary: "Knative's autoscaler: as many as keep the requests in flight for each at a target, over a window",
	Params: []Param{
		{Name: "target-utilization", Help: "share of an instance's concurrency that is aimed at", Default: 0.7, Min: 0.01, Max: 1},
		{Name: "stable-window", Help: "what is averaged over", Default: 60, Min: 6, Max: 3600, Seconds: true},
		{Name: "panic-window", Help: "the part of it that a panic looks at", Default: 0.1, Min: 0.01, Max: 1},
		{Name: "panic-threshold", Help: "wanted over ready from which there is a panic", Default: 2, Min: 1.1, Max: 10},
		{Name: "max-scale-up-rate", Help: "wanted over ready at most", Default: 1000, Min: 1.01, Max: 1e6},
		{Name: "max-scale-down-rate", Help: "ready over wanted at most", Default: 2, Min: 1.01, Max: 1e6},
		{Name: "scale-down-delay", Help: "how long fewer must have been wanted", Default: 0, Min: 0, Max: 3600, Seconds: true},
		{Name: "scale-to-zero-grace-period", Help: "the last one stays so long at most until requests go to the gateway", Default: 30, Min: 1, Max: 3600, Seconds: true},
		{Name: "scale-to-zero-pod-retention-period", Help: "the last one stays so long at least", Default: 0, Min: 0, Max: maxSeconds, Seconds: true},
		{Name: "activation-scale", Help: "the fewest from the first request on", Default: 1, Min: 1, Max: 1000},
	},
	New: newKPA,
}

// kpaTick is how often Knative decides (pkg/autoscaler/scaling/multiscaler.go).
const kpaTick = 2 * time.Second

type kpaPolicy struct {
	utilization                 float64
	stableWindow                time.Duration
	panicThreshold              float64
	maxUp, maxDown              float64
	grace, retention, downDelay time.Duration
	activationScale             int

	stable, panicking *window
	delay             *maxWindow // nil: no delay

	seen     time.Duration // until which requests in flight are counted
	inFlight int           // from then on
	nextTick time.Duration

	panicSince time.Duration // noTime: it is calm
	maxPanic   int
	wanted     int
	active     time.Duration // since when the function is; noTime: it is not
	inactive   time.Duration // since when nothing is wanted of one that was; noTime: something is
}

// noTime is no point in time.
const noTime = time.Duration(-1)

func newKPA(v Values, _ Function, _ *Group) Policy {
	k := &kpaPolicy{
		utilization: v["target-utilization"], stableWindow: v.duration("stable-window"), panicThreshold: v["panic-threshold"],
		maxUp: v["max-scale-up-rate"], maxDown: v["max-scale-down-rate"], activationScale: int(v["activation-scale"]),
		grace: v.duration("scale-to-zero-grace-period"), retention: v.duration("scale-to-zero-pod-retention-period"),
		downDelay: v.duration("scale-down-delay"), panicSince: noTime, active: noTime, inactive: noTime, seen: noTime,
	}
	k.stable = newWindow(k.stableWindow)
	k.panicking = newWindow(time.Duration(float64(k.stableWindow) * v["panic-window"]))
	if k.downDelay > 0 {
		k.delay = newMaxWindow(k.downDelay)
	}
	return k
}

func (k *kpaPolicy) Decide(now time.Duration, l *Load) Decision {
	k.count(now)
	k.inFlight = l.Waiting + l.Active
	all := l.Starting + l.Busy + l.Idle
	if all == 0 && l.Waiting > 0 && k.wanted == 0 {
		// The activator's poke: one is wanted at once, and the next tick is due a whole one later.
		k.wanted, k.nextTick = k.activationScale, now+kpaTick
		k.activate(now)
	}
	// With nothing in flight and no more than there always are, a tick would say the same for ever.
	ticks := k.inFlight > 0 || all != l.Min || k.wanted > 0
	if now >= k.nextTick && ticks {
		k.nextTick = now + kpaTick
		k.wanted = k.toZero(now, k.scale(now, l))
	}
	want := min(max(k.wanted, l.Min), l.Max)
	d := Decision{Start: max(0, want-all), Keep: want}
	if ticks {
		d.Again = max(k.nextTick-now, time.Nanosecond)
	}
	return d
}

// count adds the requests that were in flight until now to the windows.
func (k *kpaPolicy) count(now time.Duration) {
	if k.seen == noTime {
		k.seen = now
	}
	if k.inFlight == 0 { // which counts, too
		k.seen = now
		k.stable.add(int64(now/time.Second), 0)
		k.panicking.add(int64(now/time.Second), 0)
		return
	}
	// What is older than the window does not count.
	k.seen = max(k.seen, now-k.stableWindow-time.Second)
	for k.seen < now {
		second := int64(k.seen / time.Second)
		until := min(now, time.Duration(second+1)*time.Second)
		v := float64(k.inFlight) * (until - k.seen).Seconds()
		k.stable.add(second, v)
		k.panicking.add(second, v)
		k.seen = until
	}
}

// scale is Knative's Scale, with what the windows say.
func (k *kpaPolicy) scale(now time.Duration, l *Load) int {
	// The second that has begun is not over: Knative's newest bucket is the last whole one.
	second := int64(now/time.Second) - 1
	return k.desired(now, k.stable.average(second), k.panicking.average(second), l)
}

// desired is how many are wanted for so many requests in flight.
func (k *kpaPolicy) desired(now time.Duration, stable, panicked float64, l *Load) int {
	ready := float64(max(1, l.Busy+l.Idle))
	target := float64(max(1, l.Concurrency)) * k.utilization
	if t := l.target(); t < max(1, l.Concurrency) { // the function's own
		target = float64(t)
	}
	most, least := math.Ceil(k.maxUp*ready), math.Floor(ready/k.maxDown)
	byStable, byPanic := math.Ceil(stable/target), math.Ceil(panicked/target)
	bounded := func(by float64) int {
		n := int(min(max(by, least), most))
		if by > 0 {
			n = max(n, k.activationScale)
		}
		return n
	}
	desired := bounded(byStable)
	over := byPanic/ready >= k.panicThreshold
	switch {
	case over:
		k.panicSince = now
	case k.panicSince != noTime && k.panicSince+k.stableWindow < now:
		k.panicSince, k.maxPanic = noTime, 0
	}
	if k.panicSince != noTime { // only more, as long as it lasts
		k.maxPanic = max(k.maxPanic, desired, bounded(byPanic))
		desired = k.maxPanic
	}
	if k.delay != nil {
		desired = k.delay.max(now, desired)
	}
	return desired
}

func (k *kpaPolicy) activate(now time.Duration) {
	k.inactive = noTime
	if k.active == noTime {
		k.active = now
	}
}

// toZero is Knative's handleScaleToZero.
func (k *kpaPolicy) toZero(now time.Duration, desired int) int {
	if desired > 0 {
		k.activate(now)
		return desired
	}
	if k.active == noTime {
		return 0
	}
	if now-k.active < k.stableWindow {
		return 1
	}
	if k.inactive == noTime {
		k.inactive = now
	}
	idle := now - k.inactive
	// The gateway has been on the way for as long as the function was active.
	if idle >= max(k.grace, k.retention) || idle >= k.retention && now-k.active >= k.grace {
		k.active, k.inactive = noTime, noTime
		return 0
	}
	return 1
}

// maxWindow is the largest of what was said in the last ticks
// (pkg/autoscaler/aggregation/max).
type maxWindow struct {
	length  time.Duration
	entries []maxEntry // from the largest to the newest
}

type maxEntry struct {
	at time.Duration
	v  int
}

func newMaxWindow(length time.Duration) *maxWindow { return &maxWindow{length: length} }

func (w *maxWindow) max(now time.Duration, v int) int {
	for len(w.entries) > 0 && w.entries[len(w.entries)-1].v <= v {
		w.entries = w.entries[:len(w.entries)-1]
	}
	w.entries = append(w.entries, maxEntry{now, v})
	for w.entries[0].at <= now-w.length {
		w.entries = w.entries[1:]
	}
	return w.entries[0].v
}
