package node

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// send makes a request over a lease that is given up after the time, and gives the
// lease back as the gateway does.
func send(t *testing.T, l Lease, path string, limit time.Duration, failure api.Failure) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://hello"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.Transport(false).RoundTrip(req)
	if err != nil {
		l.Release(api.Invocation{Status: 504, Failure: failure, Error: err.Error()})
		return err
	}
	resp.Body.Close()
	l.Release(api.Invocation{Status: 200})
	return nil
}

func hanging(req *http.Request) bool { return req.URL.Path == "/hang" }

// A server that takes one request at a time gets one that it never answers: the
// next clients get others, and it ends, for each way in which a request is given
// up.
func TestHungInstanceServesNobody(t *testing.T) {
	for _, failure := range []api.Failure{api.FailureTimeout, api.FailureClient} {
		t.Run(string(failure), func(t *testing.T) {
			w := newWorld(t)
			w.hang = hanging
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				healthy, hung := acquire(t, n, AcquireOptions{}), acquire(t, n, AcquireOptions{})
				must(t, send(t, healthy, "/", time.Second, ""))
				if send(t, hung, "/hang", 8*time.Second, failure) == nil {
					t.Fatal("it answered")
				}
				for range 3 {
					l := acquire(t, n, AcquireOptions{})
					if l.Instance() == hung.Instance() {
						t.Errorf("the hung instance is lent again")
					}
					must(t, send(t, l, "/", time.Second, ""))
				}
				if is := n.Instances("hello"); len(is) != 2 || !is[0].Probation && !is[1].Probation {
					t.Errorf("instances %+v, want one on probation", is)
				}
				time.Sleep(probeLimit + time.Second)
				is := n.Instances("hello")
				if len(is) != 1 || is[0].ID != healthy.Instance() {
					t.Errorf("instances %+v, want only the healthy one", is)
				}
				if err := hung.Err(); !errors.Is(err, errHangs) || !strings.Contains(err.Error(), "no answer to a probe") {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}

// One that works off the abandoned request is lent again when it has, with all
// that it has warm; what was given up does not renew its keep-alive.
func TestProbationIsPassed(t *testing.T) {
	for _, path := range []string{"", "/ready"} {
		w := newWorld(t)
		w.hang = hanging
		synctest.Test(t, func(t *testing.T) {
			n := w.open(t, nil)
			defer n.Close(context.Background())
			deploy(t, n, hello(func(f *api.Function) { f.MaxInstances, f.ReadyPath = 1, path }))
			l := acquire(t, n, AcquireOptions{})
			id := l.Instance()
			began := time.Now()
			if send(t, l, "/hang", time.Second, api.FailureClient) == nil {
				t.Fatal("it answered")
			}
			m := w.machines[id]
			time.AfterFunc(4*time.Second, func() { close(m.recover) })
			l = acquire(t, n, AcquireOptions{})
			if took := time.Since(began); took < 5*time.Second || took > 6*time.Second || l.Instance() != id {
				t.Errorf("lent after %v: %s, want %s when it answers", took, l.Instance(), id)
			}
			want := "OPTIONS *"
			if path != "" {
				want = "GET " + path
			}
			if got := m.asked[len(m.asked)-1]; got != want {
				t.Errorf("asked with %q, want %q", got, want)
			}
			l.Release(api.Invocation{Status: 200})
			p := n.pool("hello")
			p.mu.Lock()
			idle := p.instances[id].idleSince
			p.mu.Unlock()
			time.Sleep(time.Second)
			send(t, acquire(t, n, AcquireOptions{}), "/", 0, api.FailureClient)
			time.Sleep(time.Second)
			p.mu.Lock()
			defer p.mu.Unlock()
			if !p.instances[id].idleSince.Equal(idle) {
				t.Error("a request that was left renews the keep-alive")
			}
		})
	}
}

// A server that answers probes beside a handler that hangs is ended by the second
// request that it does not answer.
func TestTwoTimeoutsInARow(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = 1 }))
		first := acquire(t, n, AcquireOptions{})
		first.Release(api.Invocation{Failure: api.FailureTimeout})
		again := acquire(t, n, AcquireOptions{})
		if again.Instance() != first.Instance() {
			t.Fatal("it passed, and is not lent")
		}
		again.Release(api.Invocation{Failure: api.FailureTimeout})
		if other := acquire(t, n, AcquireOptions{}); other.Instance() == first.Instance() {
			t.Error("lent a third time")
		} else {
			other.Release(api.Invocation{Status: 200})
		}
	})
}

// One that is hung does not keep others from being started, nor can it be kept by
// a function that needs its place.
func TestHungInstanceMakesRoom(t *testing.T) {
	w := newWorld(t)
	w.hang = hanging
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.MaxInstances = 1 })
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		deploy(t, n, hello(func(f *api.Function) { f.Name = "other" }))
		l := acquire(t, n, AcquireOptions{})
		_ = send(t, l, "/hang", time.Second, api.FailureTimeout)
		began := time.Now()
		other, err := n.Acquire(t.Context(), "other", AcquireOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("another function waited %v for its place", took)
		}
		other.Release(api.Invocation{Status: 200})
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
