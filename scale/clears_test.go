package scale

import (
	"testing"
	"time"
)

func TestClears(t *testing.T) {
	for name, c := range map[string]struct {
		load Load
		want time.Duration
	}{
		"nobody waits":                 {Load{Busy: 1, Service: time.Second}, 0},
		"nothing is known":             {Load{Waiting: 5, Busy: 1}, 0},
		"one place":                    {Load{Waiting: 5, Busy: 1, Service: 2 * time.Second}, 10 * time.Second},
		"two instances of two":         {Load{Waiting: 5, Busy: 2, Concurrency: 2, Service: time.Second}, 2 * time.Second},
		"what has run until now":       {Load{Waiting: 2, Busy: 1, Running: []time.Duration{time.Second, 3 * time.Second}}, 6 * time.Second},
		"all start":                    {Load{Waiting: 4, Starting: 2, Service: time.Second, Start: 5 * time.Second, Underway: []time.Duration{time.Second, 2 * time.Second}}, 5 * time.Second},
		"a start that takes too long":  {Load{Waiting: 1, Starting: 1, Service: time.Second, Start: time.Second, Underway: []time.Duration{time.Minute}}, time.Second},
		"no instance, and none starts": {Load{Waiting: 3, Service: time.Second}, 3 * time.Second},
	} {
		if got := c.load.Clears(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
