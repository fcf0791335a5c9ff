// Package scale has the policies of how many instances a function has: from its
// load and the time to what should be started and ended, and nothing else, so that
// the same code decides live and in a simulation. A policy is a file and a line in
// Kinds. Package node asks whenever a request begins to wait, an instance becomes
// ready or idle, or a keep-alive runs out.
package scale

import (
	"slices"
	"time"
)

// Load is what a function's instances are doing at one moment.
type Load struct {
	Waiting     int // requests that no instance has
	Starting    int // instances that are not ready yet
	Busy        int // instances with at least one request, and those that end but still hold resources
	Idle        int // ready instances without a request
	Active      int // requests that instances have
	Free        int // requests that the busy and idle ones could take on now
	Concurrency int // requests at once in one instance; less than 1 counts as 1
	Target      int // requests in one instance beyond which others are started, see Target; less than 1 counts as Concurrency
	Min         int // instances that there are to be though nobody asks
	Max         int // instances at once

	// What a start is weighed against. Without Start, or any sign of how long
	// requests take, every waiting one is worth a start.
	Start    time.Duration   // that a start takes here; 0: none was seen yet
	Service  time.Duration   // that a request keeps its place; 0: none was seen yet
	Running  []time.Duration // for how long each request has kept a place that will be free after it
	Underway []time.Duration // for how long each of the Starting has been
}

// Starts returns how many instances to start now: never more than Max in all, nor
// more than would have a request to serve, and of those only as many as are worth
// it. A request is worth a start when it would else wait for half as long again as
// a start takes, by what is known: when the places that there are will be free,
// and in which order the requests get them. One new place then serves as many
// such requests as it can in the time of a start.
//
// Again is when to ask anew though nothing has happened: an instance that is
// slower than expected lets the wait for it grow. 0: never.
func Starts(l Load) (n int, again time.Duration) {
	per := max(1, l.Concurrency)
	unserved := l.Waiting - max(0, l.Free) - max(0, l.Starting)*per
	room := l.Max - l.Starting - l.Busy - l.Idle
	if l.Start <= 0 || l.Service <= 0 && len(l.Running) == 0 {
		return max(0, min(ceil(unserved, per), room)), 0
	}
	service := l.service()
	late := l.late(per, service)
	if l.Waiting > 0 && room > 0 {
		again = l.Start / 2
	}
	each := per
	if service > 0 {
		each *= max(1, int(l.Start/service))
	}
	return max(0, min(ceil(late, each), room)), again
}

func ceil(a, b int) int { return (a + b - 1) / b }

// service is what to expect of a request: where nothing was seen yet, as much as
// the one that runs for longest has taken already.
func (l *Load) service() time.Duration {
	if l.Service > 0 || len(l.Running) == 0 {
		return l.Service
	}
	return slices.Max(l.Running)
}

// late returns how many of the waiting requests are worth a start: those that the
// places that there are will not have begun within the limit. A place that is free in
// a time begins one then and one more after each service.
func (l *Load) late(per int, service time.Duration) int {
	limit := l.Start + l.Start/2
	begun := 0
	place := func(n int, left time.Duration) (enough bool) {
		switch {
		case n == 0 || left > limit:
		case service <= 0:
			begun = l.Waiting
		default:
			begun += n * (1 + int((limit-left)/service))
		}
		return begun >= l.Waiting
	}
	if place(max(0, l.Free), 0) {
		return 0
	}
	for i := range l.Starting {
		left := l.Start
		if i < len(l.Underway) {
			left = max(0, l.Start-l.Underway[i])
		}
		if place(per, left) {
			return 0
		}
	}
	for _, age := range l.Running {
		left := service - age
		if left <= 0 || l.Service <= 0 {
			// Slower than others, or nobody knows: it may take as long again. Beside one
			// that has run for a little longer it would else be about to end for ever.
			left = max(left, age)
		}
		if place(1, left) {
			return 0
		}
	}
	return l.Waiting - begun
}

// Average returns a running average of durations with one more in it: the last
// five count for two thirds. The first is taken as it is.
func Average(average, next time.Duration) time.Duration {
	if average <= 0 {
		return next
	}
	return average + (next-average)/5
}

// Ending says which idle instances end by a decision: the indices into since, which
// holds when each became idle. all counts the instances, idle or not. Next is the time
// until the next one will, 0 when none is left.
func Ending(since []time.Time, now time.Time, d Decision, all int) (ending []int, next time.Duration) {
	if d.Idle == Forever {
		return nil, 0
	}
	order := make([]int, len(since)) // the longest idle first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return since[a].Compare(since[b]) })
	for _, i := range order {
		if all-len(ending) <= d.Keep {
			break
		}
		if left := d.Idle - now.Sub(since[i]); left > 0 {
			return ending, left
		}
		ending = append(ending, i)
	}
	return ending, 0
}

// Victim returns the index of the idle instance to end when another function
// needs its place: the one idle for longest, -1 when there is none. Requests
// go to the one idle for the shortest time, so that the others can expire.
func Victim(since []time.Time) int {
	victim := -1
	for i, t := range since {
		if victim < 0 || t.Before(since[victim]) {
			victim = i
		}
	}
	return victim
}
