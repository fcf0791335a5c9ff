package scale

// Target is how many requests an instance is to have at most before others are started:
// a share of its concurrency, at least one. A utilization of 0 is all of it.
func Target(concurrency int, utilization float64) int {
	if utilization <= 0 || utilization >= 1 {
		return max(1, concurrency)
	}
	return max(1, int(float64(concurrency)*utilization))
}

// target is the load's, within what is possible.
func (l *Load) target() int {
	per := max(1, l.Concurrency)
	if l.Target < 1 || l.Target > per {
		return per
	}
	return l.Target
}

// beyond is how many instances are missing so that none has more than its target, though
// all that wait could be served by those that there are. Where the target is all of the
// concurrency that is for Starts to say.
func (l *Load) beyond() int {
	target := l.target()
	if target == max(1, l.Concurrency) {
		return 0
	}
	all := l.Starting + l.Busy + l.Idle
	return max(0, min(ceil(l.Waiting+l.Active, target), l.Max)-all)
}

// Choose is the index of the instance, of those that can take a request, that the next one
// goes to, by how many requests each has, the last used last: the last used that is below
// its target, so that others expire; where none is, the one with the fewest, where the request
// waits least for its neighbours. -1: there is none.
func Choose(active []int, target int) int {
	least := -1
	for i := len(active) - 1; i >= 0; i-- {
		if active[i] < target {
			return i
		}
		if least < 0 || active[i] < active[least] {
			least = i
		}
	}
	return least
}
