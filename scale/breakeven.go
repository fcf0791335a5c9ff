package scale

import (
	"math"
	"math/bits"
	"time"
)

// breakEven keeps an instance for as long as that costs less than it saves. To hold
// memory costs that memory for that time; a start costs whoever waits for it the time
// that starts take here, at a price. When an instance was idle for long enough that
// what it has held would have paid a start, nothing is known that speaks for keeping
// it: whoever ends it then pays at most twice what would have been best (ski rental;
// Karlin et al., "Competitive snoopy caching", Algorithmica 1988). Where the idle times
// of the function are known, the time is taken at which the sum of both would have been
// least over all of them (Karlin et al., "Competitive randomized algorithms for
// nonuniform problems", Algorithmica 1994).
//
// So a function that starts in 50 ms is kept for a fraction of the time of one that
// boots for seconds.
var breakEven = Kind{
	Name: "break-even", Summary: "weighs what a start costs here against the memory that is held until the next request",
	Params: []Param{
		{Name: "price", Help: "MiB that may be held for a second to save a second's wait", Default: 16384, Min: 1, Max: 1e9},
		{Name: "learn", Help: "idle times from which they are gone by; before, the break-even time", Default: 8, Min: 1, Max: 1e6},
	},
	New: func(v Values, f Function, _ *Group) Policy {
		return &breakEvenPolicy{price: v["price"], learn: uint32(v["learn"]), size: float64(max(1, f.MemoryMiB))}
	},
}

// gapBins are octaves of idle times, halved, from a millisecond; the last holds all that is
// longer than some 50 days.
const gapBins = 2 * 32

// unknownStart is taken for a start until one was seen: as long as a boot may take, so
// that what is not known errs towards keeping.
const unknownStart = 5 * time.Second

type breakEvenPolicy struct {
	price, size float64
	learn       uint32

	bins  [gapBins]uint16
	count uint32
	known uint32        // gaps that keep is from
	start time.Duration // of a start, that it is from
	keep  time.Duration

	level int             // instances' worth of requests in flight
	left  []time.Duration // when each level was left: left[i] is that of i+1 to i
}

func (b *breakEvenPolicy) Decide(now time.Duration, l *Load) Decision {
	start, again := react(l)
	b.follow(now, l)
	cost := l.Start
	if cost <= 0 {
		cost = unknownStart
	}
	if changed := cost - b.start; b.keep == 0 || changed > b.start/8 || changed < -b.start/8 || b.count >= b.known+b.known/4+1 {
		b.start, b.known = cost, b.count
		b.keep = b.best(cost)
	}
	return Decision{Start: start, Keep: l.Min, Idle: b.keep, Again: again}
}

// follow notes how long each level of load was not there before it was again. Under
// requests that go to the last used, that is how long the instance of that level was idle,
// or would have been.
func (b *breakEvenPolicy) follow(now time.Duration, l *Load) {
	per := max(1, l.Concurrency)
	level := ceil(l.Waiting+l.Active, per)
	for b.level < level {
		if b.level < len(b.left) {
			b.saw(now - b.left[b.level])
		} else {
			b.left = append(b.left, now)
		}
		b.level++
	}
	for b.level > level {
		b.level--
		b.left[b.level] = now
	}
}

func (b *breakEvenPolicy) saw(gap time.Duration) {
	bin := gapBin(gap)
	if b.bins[bin] == math.MaxUint16 { // the past counts half from now on
		b.count = 0
		for i := range b.bins {
			b.bins[i] /= 2
			b.count += uint32(b.bins[i])
		}
		b.known = min(b.known, b.count)
	}
	b.bins[bin]++
	b.count++
}

// gapBin is the bin of an idle time: those below a millisecond are in the first.
func gapBin(gap time.Duration) int {
	ms := uint64(max(0, gap) / time.Millisecond)
	if ms == 0 {
		return 0
	}
	octave := bits.Len64(ms) - 1
	half := 0
	if octave > 0 {
		half = int(ms>>(octave-1)) & 1
	}
	return min(2*octave+half, gapBins-1)
}

// gapEnd is where a bin ends: no idle time in it is as long.
func gapEnd(bin int) time.Duration {
	octave := bin / 2
	if bin%2 == 1 {
		return time.Millisecond << (octave + 1)
	}
	return time.Millisecond << octave * 3 / 2
}

// best is how long to keep an idle instance.
func (b *breakEvenPolicy) best(start time.Duration) time.Duration {
	saved := b.price * start.Seconds() // in MiB×s
	even := time.Duration(min(saved/b.size, maxSeconds) * float64(time.Second))
	if b.count < b.learn {
		return max(even, time.Millisecond)
	}
	// The cost of keeping until the end of each bin, of all gaps: those that have ended
	// by then have held memory until their end, the others for all the time, and pay a start.
	held, seen := 0.0, uint32(0)
	best, least := time.Millisecond, saved*float64(b.count)
	for bin, n := range b.bins {
		if n == 0 {
			continue
		}
		end := gapEnd(bin)
		held += float64(n) * b.size * end.Seconds() * 5 / 6 // about the middle of a bin
		seen += uint32(n)
		rest := float64(b.count - seen)
		if cost := held + rest*(b.size*end.Seconds()+saved); cost < least {
			best, least = end, cost
		}
	}
	return best
}
