package scale

import (
	"math"
	"time"
)

// Ahead is how many processes should wait for a function's next cold starts: as many
// as came together lately, at least one. It goes by what was missed, so that starts which come
// one after the other, however often, want no more than one that is replaced in time. The
// zero value wants one.
type Ahead struct {
	more float64   // beside the one, when at was
	at   time.Time // of the last miss
}

// aheadHalf is how long it takes until half as many are wanted as at the last miss.
const aheadHalf = 5 * time.Minute

// Missed notes a start that found none waiting.
func (a *Ahead) Missed(now time.Time) {
	a.more, a.at = a.left(now)+1, now
}

// Wanted is how many should wait, at most most.
func (a *Ahead) Wanted(now time.Time, most int) int {
	return min(1+int(math.Round(min(a.left(now), float64(most)))), most)
}

func (a *Ahead) left(now time.Time) float64 {
	return a.more * math.Exp2(-max(now.Sub(a.at), 0).Seconds()/aheadHalf.Seconds())
}
