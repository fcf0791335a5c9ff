package node

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// herd sends rounds of requests by that many clients and returns how long they
// took, and how many starts there were.
func herd(t *testing.T, max, clients, rounds int, service time.Duration) (total time.Duration, starts int) {
	w := newWorld(t)
	w.restoreTime = 500 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = max }))
		w.set(func() { w.serviceTime = service })
		for range 3 { // one warm instance, and what its requests take is known
			l := acquire(t, n, AcquireOptions{})
			must(t, send(t, l, "/", time.Hour, ""))
		}
		before := w.restores
		began := time.Now()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range rounds {
					l := acquire(t, n, AcquireOptions{})
					if err := send(t, l, "/", time.Hour, ""); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		total, starts = time.Since(began), w.restores-before
	})
	return total, starts
}

// Eight short requests at one warm instance are served by it; what pays is
// started: for more of them than it can serve in the time of a start, and at once
// for those that take long.
func TestHerd(t *testing.T) {
	const ms = time.Millisecond
	for name, tc := range map[string]struct {
		clients, rounds int
		service         time.Duration
		starts          int
		total           time.Duration
	}{
		"short":        {8, 1, 20 * ms, 0, 160 * ms},
		"short, often": {8, 10, 20 * ms, 0, 1600 * ms},
		// Seven more wait for the one start that each is worth.
		"long": {8, 1, time.Minute, 7, time.Minute + 500*ms},
	} {
		t.Run(name, func(t *testing.T) {
			total, starts := herd(t, 8, tc.clients, tc.rounds, tc.service)
			if starts != tc.starts || total != tc.total {
				t.Errorf("%d starts, %v in all; want %d and %v", starts, total, tc.starts, tc.total)
			}
		})
	}
	if _, starts := herd(t, 8, 60, 1, 20*ms); starts == 0 || starts > 4 {
		t.Errorf("sixty at once: %d starts, want a few", starts)
	}
}
