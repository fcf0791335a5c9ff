package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/skep-dev/skep/experiment"
)

// experimentProgress shows how far a run of experiments is and how long it will
// still take: a bar on a terminal, a line a minute elsewhere.
type experimentProgress struct {
	c     *cli
	p     *mpb.Progress // nil where there is no terminal
	bar   *mpb.Bar
	start time.Time

	mu      sync.Mutex // guards what follows
	point   experiment.Point
	guess   float64 // seconds, as planned, of all points
	passed  float64 // of those done
	done, n int
	said    time.Time
}

func (c *cli) newExperimentProgress(points []experiment.Point) *experimentProgress {
	e := &experimentProgress{c: c, start: time.Now(), n: len(points), said: time.Now()}
	for _, p := range points {
		e.guess += p.Seconds
	}
	if terminal(c.err) && !c.json {
		e.p = newBars(c.err)
		text := func(f func() string) decor.Decorator { return decor.Any(func(decor.Statistics) string { return f() }) }
		e.bar = e.p.AddBar(int64(len(points)),
			mpb.PrependDecorators(text(func() string { return e.what() + " " })),
			mpb.AppendDecorators(text(func() string { return fmt.Sprintf(" %s, %s left", e.count(), e.left()) })))
	}
	return e
}

func (e *experimentProgress) what() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprintf("%-14s %-34.34s", e.point.Experiment, e.point)
}

func (e *experimentProgress) count() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprintf("%d of %d", e.done, e.n)
}

// left is what the plan says is left, corrected by how long the points that are
// done really took.
func (e *experimentProgress) left() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	pace := 1.0
	if e.passed > 0 {
		pace = time.Since(e.start).Seconds() / e.passed
	}
	return time.Duration(pace * (e.guess - e.passed) * float64(time.Second)).Round(time.Second)
}

func (e *experimentProgress) Begin(p experiment.Point) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.point = p
}

func (e *experimentProgress) Done(p experiment.Point, _ []experiment.Sample) {
	e.mu.Lock()
	e.done++
	e.passed += p.Seconds
	say := e.bar == nil && time.Since(e.said) >= time.Minute
	if say {
		e.said = time.Now()
	}
	e.mu.Unlock()
	if e.bar != nil {
		e.bar.Increment()
	}
	if say {
		e.c.say("%s points, %s left; %s: %s", e.count(), e.left(), p.Experiment, p)
	}
}

func (e *experimentProgress) Again(p experiment.Point, err error) {
	e.c.say("%s: %s: %v; once more", p.Experiment, p, err)
}

func (e *experimentProgress) close() {
	if e.bar == nil {
		return
	}
	if !e.bar.Completed() {
		e.bar.Abort(false)
	}
	e.p.Wait()
}
