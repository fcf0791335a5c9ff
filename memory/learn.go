package memory

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// What learning goes by; docs/memory.md says why.
const (
	sampleEvery = 16 // one restore in so many holds a sample back, unless Options say otherwise:
	sampleShare = 16 // one page in so many
	dropAfter   = 3  // times that a page was held back in vain, in a row
	addAfter    = 2  // restores of the last eight that missed a page
	leastChange = 16 // pages that a working set is written anew for,
	changeShare = 64 // and one in so many of its pages
	poorAfter   = 4  // restores in a row that it did not pay for
	withoutFor  = 64 // starts that are made without one that never pays
)

// What a page costs the guest, on the way of its first invocation: prefetched;
// paged in by the kernel, mapped; missed under userfaultfd. Only their ratios
// matter.
const (
	costPrefetched = 5 * time.Microsecond
	costMapped     = 45 * time.Microsecond
	costMissed     = 100 * time.Microsecond
)

// pays says whether a restore was better off with its working set than mapped.
func pays(planned, used, missed int64) bool {
	with := time.Duration(planned)*costPrefetched + time.Duration(missed)*costMissed
	without := time.Duration(used+missed) * costMapped
	return with < without
}

// observation is what one restore showed, up to its first response.
type observation struct {
	planned func(page uint32) bool
	pages   int64    // planned
	held    []uint32 // of those, the ones that were held back
	touches []workingset.Touch
	besides []workingset.Touch // came with missed ones
}

// verdict is what an observation led to.
type verdict struct {
	missed int64 // pages that were touched and not planned
	wasted int64 // estimate of those that were planned and not touched; -1: not known
	add    []workingset.Touch
	drop   map[uint32]bool
	again  bool // record the working set anew
	never  bool // do without for a while
}

// history is what has been learned of one snapshot.
type history struct {
	dir string

	mu     sync.Mutex
	l      workingset.Learned // guarded by mu
	opened uint32             // guarded by mu: restores that began, which sample in turns
	idle   float64            // guarded by mu: share of the working set that is not touched; negative: not known
}

// maxHistories bounds what is kept in memory; the rest is read again.
const maxHistories = 1024

// history returns what has been learned of a snapshot. What cannot be read is
// learned anew.
func (o *Policies) history(src Source) *history {
	o.mu.Lock()
	if h := o.histories[src.Dir]; h != nil {
		o.mu.Unlock()
		return h
	}
	for dir := range o.histories {
		if len(o.histories) < maxHistories {
			break
		}
		delete(o.histories, dir)
	}
	h := &history{dir: src.Dir, l: workingset.Learned{Of: src.of()}, idle: -1}
	o.histories[src.Dir] = h
	// Read under the history's own mutex: a slow disk holds up those who restore
	// from this snapshot, and nobody else.
	h.mu.Lock()
	defer h.mu.Unlock()
	o.mu.Unlock()
	if l, err := workingset.LoadLearned(src.Dir, src.of()); err == nil {
		h.l = *l
	}
	h.opened = h.l.Restores
	return h
}

// turn is how one restore is to be made.
type turn struct {
	history *history
	without bool   // without the working set,
	left    uint32 // and so many after it
	sampled bool   // a sample is held back,
	n       uint32 // this one
}

// begin says how the next restore is to be made.
func (h *history) begin(every uint32) turn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.l.Without > 0 {
		h.l.Without--
		_ = workingset.SaveLearned(h.dir, &h.l) // a start more or less
		return turn{history: h, without: true, left: h.l.Without}
	}
	n := h.opened
	h.opened++
	return turn{history: h, sampled: n%every == every-1, n: n / every}
}

// recorded begins anew with a working set that was recorded just now.
func (h *history) recorded() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.l.Restores, h.l.Poor, h.l.Without, h.l.Pages = 0, 0, 0, nil
	h.opened, h.idle = 0, -1
	return workingset.SaveLearned(h.dir, &h.l)
}

// observe adds what a restore showed, and judges.
func (h *history) observe(o observation) verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.l.Restores++
	known := make(map[uint32]workingset.Evidence, len(h.l.Pages))
	for _, e := range h.l.Pages {
		e.Missed <<= 1
		known[e.Page] = e
	}
	v := verdict{wasted: -1}
	touched := make(map[uint32]bool, len(o.touches))
	for _, t := range o.touches {
		touched[t.Page] = true
		e := known[t.Page]
		e.Page, e.At = t.Page, microseconds(t.After)
		if o.planned(t.Page) {
			e.Idle, e.Missed = 0, 0
		} else {
			e.Missed |= 1
			v.missed++
		}
		known[t.Page] = e
	}
	// What came with a miss counts as missed, or one page in each cluster would
	// come to be known at a time; should it be idle, samples will show it.
	for _, t := range o.besides {
		e := known[t.Page]
		e.Page, e.At = t.Page, microseconds(t.After)
		e.Missed |= 1
		known[t.Page] = e
	}
	vain := 0
	for _, page := range o.held {
		if !touched[page] {
			vain++
			e := known[page]
			e.Page, e.Idle = page, min(e.Idle, 254)+1
			known[page] = e
		}
	}
	h.keep(known)
	h.weigh(len(o.held), vain)
	h.judge(o, &v)
	return v
}

func microseconds(d time.Duration) uint32 { return uint32(min(max(d, 0)/time.Microsecond, 1<<32-1)) }

// keep stores what there is still something to say of.
func (h *history) keep(known map[uint32]workingset.Evidence) {
	h.l.Pages = h.l.Pages[:0]
	for _, e := range known {
		if e.Missed != 0 || e.Idle != 0 {
			h.l.Pages = append(h.l.Pages, e)
		}
	}
	slices.SortFunc(h.l.Pages, func(a, b workingset.Evidence) int { return int(int64(a.Page) - int64(b.Page)) })
}

// weigh takes a sample into the share of pages that are idle.
func (h *history) weigh(held, vain int) {
	if held == 0 {
		return
	}
	share := float64(vain) / float64(held)
	if h.idle < 0 {
		h.idle = share
	}
	h.idle += (share - h.idle) / 8
}

// judge decides what is to be done about the working set.
func (h *history) judge(o observation, v *verdict) {
	used := o.pages
	if h.idle >= 0 {
		v.wasted = int64(h.idle*float64(o.pages) + 0.5)
		used -= v.wasted
	}
	if pays(o.pages, used, v.missed) {
		h.l.Poor = 0
		if h.l.Restores >= 2*poorAfter {
			h.l.Recordings = 0
		}
	} else {
		h.l.Poor++
	}
	if h.l.Poor >= poorAfter {
		v.again, v.never = h.l.Recordings == 0, h.l.Recordings > 0
		return
	}
	drop := make(map[uint32]bool)
	var add []workingset.Touch
	for _, e := range h.l.Pages {
		switch planned := o.planned(e.Page); {
		case planned && e.Idle >= dropAfter:
			drop[e.Page] = true
		case !planned && bits.OnesCount8(e.Missed) >= addAfter:
			add = append(add, workingset.Touch{Page: e.Page, After: time.Duration(e.At) * time.Microsecond})
		}
	}
	if int64(len(add)+len(drop)) >= max(leastChange, o.pages/changeShare) {
		v.add, v.drop = add, drop
	}
}

func (v *verdict) rewrites() bool { return len(v.add)+len(v.drop) > 0 }

// applied notes that a verdict was carried out, and saves everything.
func (h *history) applied(v verdict) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case v.again:
		h.l.Recordings++
		h.l.Poor = 0
	case v.never:
		h.l.Without, h.l.Poor = withoutFor, 0
	case v.rewrites():
		done := v.drop
		for _, t := range v.add {
			done[t.Page] = true
		}
		h.l.Pages = slices.DeleteFunc(h.l.Pages, func(e workingset.Evidence) bool { return done[e.Page] })
		h.idle = -1
	}
	return workingset.SaveLearned(h.dir, &h.l)
}

// learner is a session's part in learning.
type learner struct {
	history *history
	sample  *sample // nil: this restore holds nothing back
}

// learn has a session with a working set count what it misses, and hold back a
// sample when it is its turn.
func (s *session) learn(now turn) {
	s.learner = &learner{history: now.history}
	s.server.rec = newRecorder(s.back.pages, residualTouches)
	if now.sampled {
		s.learner.sample = newSample(s.server.plan, s.back, now.n, sampleShare)
		s.server.sample = s.learner.sample
	}
}

// observed judges the restore, and has done what follows from it.
func (s *session) observed(touches []workingset.Touch) {
	s.server.endSample()
	p := s.server.plan
	o := observation{planned: func(page uint32) bool { return p.find(page) != nil }, pages: p.pages, touches: touches, besides: s.server.rec.besides}
	if x := s.learner.sample; x != nil {
		o.held = x.pages
	}
	v := s.learner.history.observe(o)
	switch {
	case v.again:
		s.say("the working set no longer pays (%d pages missed beside %d): the next start records it anew", v.missed, o.pages)
	case v.never:
		s.say("prefetching does not pay for this snapshot (%d pages missed beside %d): the next %d starts are mapped", v.missed, o.pages, withoutFor)
	case v.rewrites():
		s.say("working set rewritten: %d pages added, %d dropped", len(v.add), len(v.drop))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed, s.wasted = v.missed, v.wasted
	if s.closed {
		return
	}
	s.work.Go(func() {
		if err := s.apply(v); err != nil {
			s.say("learning: %v", err)
		}
	})
}

// apply carries a verdict out. Where another session is writing the working set
// this is left to a later one, which will come to the same verdict.
func (s *session) apply(v verdict) error {
	if v.again || v.never || v.rewrites() {
		if !s.owner.claim(s.src.Dir) {
			return nil
		}
		defer s.owner.release(s.src.Dir)
	}
	switch {
	case v.again, v.never:
		// Of one that was written since it says nothing: that has yet to be seen.
		if gone, err := s.removeSet(); err != nil || !gone {
			return err
		}
	case v.rewrites():
		t, err := workingset.LoadTrace(s.src.Dir, s.src.of())
		if err != nil {
			return fmt.Errorf("rewriting the working set: %w", err)
		}
		t.Touches = merge(t.Touches, v.add, v.drop)
		if err := workingset.SaveTrace(s.src.Dir, t); err != nil {
			return err
		}
		if err := saveSet(context.WithoutCancel(s.ctx), s.src, s.back, t); err != nil {
			return err
		}
	}
	return s.learner.history.applied(v)
}

// merge puts pages into a trace, by their times, and takes others out.
func merge(touches, add []workingset.Touch, drop map[uint32]bool) []workingset.Touch {
	have := make(map[uint32]bool, len(touches))
	var out []workingset.Touch
	for _, t := range touches {
		if !drop[t.Page] {
			out = append(out, t)
			have[t.Page] = true
		}
	}
	for _, t := range add {
		if !have[t.Page] {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b workingset.Touch) int { return int(a.After - b.After) })
	return out
}
