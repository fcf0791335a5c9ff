package shim

import (
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/shim/base"
)

// Memory learns from a restore what the next one is to find there: what the guest has
// touched until a first request was answered. A shim sees no requests. So it takes
// what was touched until the guest has come to rest after its start, or has ended:
// what clients and probes asked of it right away is in there, what it does in the
// course of time is not.

const (
	// restFor is for how long a guest at rest has touched nothing new: longer than a
	// client that waits for the container takes to come.
	restFor   = 2 * time.Second
	restLimit = 10 * time.Second // for one that never rests
	restAsk   = 100 * time.Millisecond
)

// awaitRest waits until the guest has come to rest, and says so to its memory and to
// the shim's own.
func (r *room) awaitRest() {
	if g := r.current(); g != nil && atRest(r.ending, func() int64 { return faults(g) }) {
		r.rested(g)
	}
	tidy()
}

// atRest returns when faults has not changed for a while, or has for long; false when
// ending is closed before.
func atRest(ending <-chan struct{}, faults func() int64) bool {
	tick := time.NewTicker(restAsk)
	defer tick.Stop()
	began := time.Now()
	for last, since := faults(), began; ; {
		select {
		case now := <-tick.C:
			if n := faults(); n != last {
				last, since = n, now
			}
			if now.Sub(since) >= restFor || now.Sub(began) >= restLimit {
				return true
			}
		case <-ending:
			return false
		}
	}
}

// rested says that what a guest has touched so far is what a start needs. What was
// said first counts.
func (r *room) rested(g *base.Guest) {
	if g != nil {
		g.WithSession(func(s memory.Session) { s.Responded() })
	}
}

func faults(g *base.Guest) (n int64) {
	g.WithSession(func(s memory.Session) { n = s.Stats().Faults })
	return n
}
