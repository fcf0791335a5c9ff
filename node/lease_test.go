package node

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/api"
)

// Only a whole answer that is no error says what an invocation touches.
func TestOnlyGoodAnswersAreLearnedFrom(t *testing.T) {
	for name, tc := range map[string]struct {
		rec  api.Invocation
		want bool
	}{
		"good":        {api.Invocation{Status: 200}, true},
		"upgraded":    {api.Invocation{Status: 101}, true},
		"not changed": {api.Invocation{Status: 304}, true},
		"refused":     {api.Invocation{Status: 400}, false},
		"not found":   {api.Invocation{Status: 404}, false},
		"failed":      {api.Invocation{Status: 500}, false},
		"client left": {api.Invocation{Status: 499, Failure: api.FailureClient}, false},
		"cut short":   {api.Invocation{Status: 200, Failure: api.FailureTimeout}, false},
		"broken off":  {api.Invocation{Status: 200, Failure: api.FailureFunction}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				acquire(t, n, AcquireOptions{}).Release(tc.rec)
				if got := w.responded == 1; got != tc.want || w.responded+w.abandoned != 1 {
					t.Errorf("responded %d, abandoned %d", w.responded, w.abandoned)
				}
			})
		})
	}
}
