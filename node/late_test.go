package node

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// A server that ends by itself after a deployment would have noticed: whoever
// waits for its answer is told so, and the function's log tells it. Its instances are started for requests, one
// for each at most and none for itself; the snapshot is not blamed, and no other
// is made.
func TestServerThatEndsLater(t *testing.T) {
	w := newWorld(t)
	w.endsAfter = 3 * time.Second
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		snaps := snapshotIDs(t, n)
		starts := func() (boots, restores int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.boots, w.restores
		}
		booted, restored := starts()
		const want = "the function's server ended: exit status 3"
		l := acquire(t, n, AcquireOptions{})
		<-l.Gone()
		if err := l.Err(); err == nil || err.Error() != want {
			t.Errorf("the instance ended with %v, want %q", err, want)
		}
		l.Release(api.Invocation{Status: 502, Failure: api.FailureFunction})
		synctest.Wait()
		var log bytes.Buffer
		if err := n.Logs(t.Context(), api.LogQuery{Function: "hello"}, &log); err != nil || !strings.Contains(log.String(), want) {
			t.Errorf("the function's log: %q, %v; want %q in it", log.String(), err, want)
		}

		const requests = 20
		w.set(func() { w.serviceTime = 10 * time.Second })
		var clients sync.WaitGroup
		for range requests {
			clients.Go(func() {
				l, err := n.Acquire(t.Context(), "hello", AcquireOptions{})
				if err != nil {
					t.Errorf("waiting for an instance: %v", err)
					return
				}
				if send(t, l, "/", time.Minute, api.FailureFunction) == nil {
					t.Error("it answered")
				}
				if <-l.Gone(); !strings.Contains(l.Err().Error(), want) {
					t.Errorf("the instance ended with %v, want %q", l.Err(), want)
				}
			})
		}
		clients.Wait()
		time.Sleep(time.Hour)
		if b, r := starts(); b != booted || r > restored+1+requests {
			t.Errorf("%d boots and %d restores for %d requests", b-booted, r-restored, 1+requests)
		}
		if s, err := n.Snapshots(t.Context(), "hello"); err != nil || len(s) != 1 || !s[0].Usable || !slices.Equal(snapshotIDs(t, n), snaps) {
			t.Errorf("snapshots %+v, %v; want the one that the deployment made", s, err)
		}
	})
}

// Why a server gave no answer may be known a moment after that it did not.
func TestReasonThatComesLater(t *testing.T) {
	for name, tc := range map[string]struct {
		exits bool
		want  string
	}{
		"its end": {true, "the function's server ended: exit status 3"},
		"nothing": {false, "its server gave no answer: EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				l := acquire(t, n, AcquireOptions{})
				m := w.machines[l.Instance()]
				l.Release(api.Invocation{Status: 502, Failure: api.FailureFunction, Error: "EOF"})
				time.Sleep(reasonTime / 2)
				if tc.exits {
					close(m.exited)
				}
				<-l.Gone()
				if err := l.Err(); err.Error() != tc.want {
					t.Errorf("the instance ended with %v, want %q", err, tc.want)
				}
			})
		})
	}
}
