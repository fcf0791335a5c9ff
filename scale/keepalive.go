package scale

import (
	"cmp"
	"time"
)

// none is the floor of memory and the ceiling of cold starts.
var none = Kind{
	Name: "none", Summary: "keeps nothing: an instance ends when no request waits for it",
	New: func(Values, Function, *Group) Policy { return keepAlive(0) },
}

// fixed is what most providers do.
var fixed = Kind{
	Name: "fixed", Summary: "keeps an instance for a fixed time after its last request",
	Params: []Param{{Name: "keep-alive", Help: "that time", Default: -1, Min: 0, Max: maxSeconds, Seconds: true}},
	New: func(v Values, f Function, _ *Group) Policy {
		d := v.duration("keep-alive")
		if d < 0 {
			d = f.KeepAlive
		}
		return keepAlive(d)
	},
}

// maxSeconds bounds durations among parameters: 30 days.
const maxSeconds = 30 * 24 * 60 * 60

type keepAlive time.Duration

func (k keepAlive) Decide(_ time.Duration, l *Load) Decision {
	start, again := react(l)
	return Decision{Start: start, Keep: l.Min, Idle: time.Duration(k), Again: again}
}

// Steady says that it looks at nothing else than who waits.
func (k keepAlive) Steady() {}

// react is what policies have in common that start instances when requests wait:
// as many as are worth it, those that are missing so that none has more than its target,
// and to the least that there are to be.
func react(l *Load) (start int, again time.Duration) {
	if l.Waiting > 0 {
		start, again = Starts(*l)
	}
	return max(start, l.beyond(), min(l.Min, l.Max)-l.Starting-l.Busy-l.Idle), again
}

// sooner returns the earlier of two times to ask again, of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a > 0 && b > 0 {
		return min(a, b)
	}
	return cmp.Or(a, b)
}
