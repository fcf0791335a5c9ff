package memory

import (
	"runtime"
	"sync/atomic"
	"time"
)

// spinners bounds how many servers may spin at once.
type spinners struct {
	max, now atomic.Int32
}

// spinTime is how long a server looks for the next event before it parks.
const spinTime = 50 * time.Microsecond

// spinForEvents waits a little without giving up the thread: a guest that has
// just had a page faults again soon, and being woken costs more than the fault.
func (s *server) spinForEvents() (int, error) {
	sp := s.spin
	if sp == nil {
		return 0, nil
	}
	if sp.now.Add(1) > sp.max.Load() {
		sp.now.Add(-1)
		return 0, nil
	}
	defer sp.now.Add(-1)
	for start := time.Now(); time.Since(start) < spinTime && !s.work.Load(); {
		n, err := s.guest.FD.TryReadEvents(s.evs[:])
		if n > 0 || err != nil {
			return n, err
		}
		runtime.Gosched()
	}
	return 0, nil
}
