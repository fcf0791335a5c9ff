package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// streamPolicy is the default. Reading the working set overlaps the VMM's
// start; several reads are under way at once; what has arrived is verified and
// installed while the rest is read, in the order of first use; the vCPUs run as soon as the beginning is installed; real faults
// go first and bring their neighbours along, those of the plan and, where the
// guest misses more than the plan has, others.
type streamPolicy struct{ *Policies }

func (streamPolicy) Name() string { return "stream" }

// streamReaders is how many reads of 1 MiB are under way at once.
const streamReaders = 4

// streamTurns is how many working sets are read at once, over all instances.
const streamTurns = 2

func (p streamPolicy) Open(ctx context.Context, src Source) (Session, error) {
	var now turn
	if !p.frozen {
		now = p.history(src).begin(p.sampling)
	}
	if now.without && src.Open == nil { // what is not in a file cannot be mapped
		return openMapped("mmap", src, fmt.Sprintf("prefetching does not pay for this snapshot: mapped, for %d more starts", now.left))
	}
	s, f, err := p.openSet(ctx, p.Name(), src)
	if err != nil {
		return nil, err
	}
	if f == nil {
		// It records, and so page by page what is not in the trial set either; or another
		// does, whose record it shares.
		s.tries = s.server.rec != nil
		if s.server.rec == nil {
			s.server.beside, s.server.leaves = newBeside(s.back.pages), true
		}
		f = s.openTrial()
		switch {
		case len(s.others) > len(s.trial):
			if f != nil {
				f.close()
			}
			s.follow()
			return s, nil
		case f == nil:
			return s, nil
		}
	} else {
		if !p.frozen {
			s.learn(now)
		}
		s.server.beside, s.server.leaves = newBeside(s.back.pages), true
	}
	s.server.mayLeave = f.layout.mayLeave
	p.readFor(s, f)
	return s, nil
}

// follow has a session prefetch what another one that is recording has touched so
// far, from the memory file, whose pages that one has brought into the page cache.
func (s *session) follow() {
	hole := func(page uint32) bool { return !s.back.data.has(page) }
	l := newLayout(workingset.Runs(merge(s.trial, s.others, nil), hole, 0))
	s.server.plan, s.server.mayLeave = l.plan(), l.mayLeave
	s.say("prefetching what that has touched")
	spans := s.server.plan.spans(bufferSize) // from Attach on the plan is the server's
	s.begin = func() { s.fetchMemory(spans, streamReaders) }
}

// What a page costs, for mayLeave. The first is what installing takes by run;
// the second is what a fault added to the times of the trace, which was
// recorded with each page served by one.
const (
	installCost  = 2500 * time.Nanosecond
	recordedCost = 20 * time.Microsecond
)

// mayLeave is how many runs, the last of the plan, need not be installed when
// the vCPUs begin to run: installing goes on, and stays ahead of a guest that
// is no faster than when it was recorded. A guest that does nothing but touch
// pages is better off with all of them there.
func mayLeave(runs []workingset.Run) int {
	var ahead time.Duration // the head start that installing needs
	pages := time.Duration(0)
	for i := range runs {
		pages += time.Duration(runs[i].Pages)
		used := time.Duration(runs[i].At)*time.Microsecond - pages*recordedCost
		ahead = max(ahead, pages*installCost-max(used, 0))
	}
	need := ahead / installCost // pages
	for i := range runs {
		if need <= 0 {
			return len(runs) - i
		}
		need -= time.Duration(runs[i].Pages)
	}
	return 0
}
