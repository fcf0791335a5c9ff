package node

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/network"
)

// What is called deployed answers requests that come from outside, booted and
// restored; else what was there stays, and the error says why.
func TestDeployedMeansThatItAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(*world)
		want  string
	}{
		"loopback only":           {func(w *world) { w.refuse = func(*fakeMachine) bool { return true } }, "127.0.0.1 only"},
		"loopback only, restored": {func(w *world) { w.refuse = func(m *fakeMachine) bool { return m.memory == "" } }, "but not when it is restored"},
		"silent":                  {func(w *world) { w.hang = func(*http.Request) bool { return true } }, "no answer within 10s"},
		"ends soon":               {func(w *world) { w.endsAfter = 300 * time.Millisecond }, "server ended: exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, nil)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				before := n.snaps.IDs("hello")
				w.set(func() { tc.fault(w); w.say = []string{"its last words"} })
				_, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Env = map[string]string{"NEW": "1"} }), nil)
				var start *StartError
				if !errors.As(err, &start) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("error %v, want %q", err, tc.want)
				}
				w.set(func() { w.refuse, w.hang, w.endsAfter = nil, nil, 0 })
				if f, _ := n.Function("hello"); f.Env["NEW"] != "" {
					t.Error("the new version is in force")
				}
				if after := n.snaps.IDs("hello"); len(after) != 1 || after[0] != before[0] {
					t.Errorf("snapshots %v, want %v", after, before)
				}
				l := acquire(t, n, AcquireOptions{Start: api.StartRestore})
				must(t, send(t, l, "/", time.Second, ""))
			})
		})
	}
}

// Whatever a server answers to a probe, in HTTP/1.1 or in HTTP/2 alone, shows
// that it is there; at a ready path only a 2xx does.
func TestProbeTakesAnyAnswer(t *testing.T) {
	protocols := func(h1, h2 bool) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(h1)
		p.SetUnencryptedHTTP2(h2)
		return p
	}
	for name, tc := range map[string]struct {
		protocols *http.Protocols
		status    int
		path      string
		raw       string // what it answers, whatever it is asked
		want      bool
	}{
		"http":            {protocols: protocols(true, false), status: 200, want: true},
		"h2c only":        {protocols: protocols(false, true), status: 200, want: true},
		"ready":           {protocols: protocols(true, false), status: 204, path: "/ready", want: true},
		"not ready":       {protocols: protocols(true, false), status: 503, path: "/ready"},
		"not implemented": {raw: "HTTP/1.0 501 Unsupported method ('OPTIONS')\r\n\r\n", want: true},
		"not HTTP":        {raw: "220 mail.example.org ESMTP\r\n"},
		"hangs up":        {},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			if tc.protocols != nil {
				s := &http.Server{Protocols: tc.protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(tc.status) })}
				go s.Serve(l)
				defer s.Close()
			} else {
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						_, _ = http.ReadRequest(bufio.NewReader(c))
						_, _ = c.Write([]byte(tc.raw))
						c.Close()
					}
				}()
				defer l.Close()
			}
			n := &Node{deps: Deps{Dial: func(ctx context.Context, _ *network.Slot, _ int) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			}}}
			inst := &instance{ctx: t.Context(), dep: &deployment{fn: api.Function{Name: "f", ReadyPath: tc.path}.WithDefaults()}}
			inst.transports = n.newTransports(inst, nil)
			defer inst.transports.close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := inst.ask(ctx); (err == nil) != tc.want {
				t.Errorf("%v, want an answer: %v", err, tc.want)
			}
		})
	}
}
