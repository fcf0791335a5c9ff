// Package scale is the policy of how many instances a function has: pure
// functions from its load and the time to what should be started and ended.
// Package node asks it whenever a request begins to wait, an instance becomes
// ready or idle, or a keep-alive runs out.
package scale

import "time"

// Load is what a function's instances are doing at one moment.
type Load struct {
	Waiting     int // requests that no instance has
	Starting    int // instances that are not ready yet
	Busy        int // instances with at least one request, and those that end but still hold resources
	Idle        int // ready instances without a request
	Free        int // requests that the busy and idle ones could take on now
	Concurrency int // requests at once in one instance; less than 1 counts as 1
	Max         int // instances at once
}

// Starts returns how many instances to start now: enough that every waiting
// request will have a place when all are ready, and never more than Max in all.
func Starts(l Load) int {
	per := max(1, l.Concurrency)
	unserved := l.Waiting - max(0, l.Free) - max(0, l.Starting)*per
	if unserved <= 0 {
		return 0
	}
	want := (unserved + per - 1) / per
	room := l.Max - l.Starting - l.Busy - l.Idle
	return max(0, min(want, room))
}

// Expired says which idle instances have outlived keepAlive: the indices into
// since, which holds when each became idle. Next is the time until the next
// one will, 0 when none is left.
func Expired(since []time.Time, now time.Time, keepAlive time.Duration) (expired []int, next time.Duration) {
	for i, t := range since {
		left := keepAlive - now.Sub(t)
		switch {
		case left <= 0:
			expired = append(expired, i)
		case next == 0 || left < next:
			next = left
		}
	}
	return expired, next
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

// Backoff is how long to wait before another start after so many failed in a
// row: 100 ms, doubling, at most 10 s.
func Backoff(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(10*time.Second, 100*time.Millisecond<<min(failures-1, 10))
}
