package scale

import (
	"slices"
	"time"
)

// Clears is in how long the requests that wait now will have begun, by what one takes and
// the places that there are: whoever comes after that is likely to find room in the queue.
// 0: nothing is known of it.
func (l *Load) Clears() time.Duration {
	service := l.service()
	if service <= 0 || l.Waiting <= 0 {
		return 0
	}
	places := max(1, l.Starting+l.Busy+l.Idle) * max(1, l.Concurrency)
	d := time.Duration(ceil(l.Waiting, places)) * service
	if l.Busy+l.Idle == 0 && len(l.Underway) > 0 {
		d += max(0, l.Start-slices.Max(l.Underway))
	}
	return d
}
