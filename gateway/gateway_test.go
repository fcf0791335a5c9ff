package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// fakeNode lends instances that are servers of the test.
type fakeNode struct {
	fn      api.Function
	lend    func(try int) (string, error) // address of the server
	options node.AcquireOptions
	ending  chan struct{} // of the instances
	gone    chan struct{} // the same; as long as it is open their end may be on its way
	goneErr error
	unready error

	mu   sync.Mutex // guards below
	recs []api.Invocation
	lent int
	open map[*fakeLease]bool
}

func newFake(t *testing.T, addr string) *fakeNode {
	f := &fakeNode{fn: api.Function{Name: "fn", Image: "x"}.WithDefaults(), lend: func(int) (string, error) { return addr, nil }, open: map[*fakeLease]bool{}, gone: make(chan struct{})}
	close(f.gone) // all is known at once, which is nothing
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.open) > 0 {
			t.Errorf("%d leases were not released", len(f.open))
		}
	})
	return f
}

func (f *fakeNode) Function(name string) (api.Function, bool) { return f.fn, name == f.fn.Name }
func (f *fakeNode) FunctionNames() []string                   { return []string{f.fn.Name} }
func (f *fakeNode) Healthy(context.Context) error             { return nil }
func (f *fakeNode) Ready(context.Context) error               { return f.unready }
func (f *fakeNode) Record(r api.Invocation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recs = append(f.recs, r)
}

func (f *fakeNode) Acquire(ctx context.Context, _ string, o node.AcquireOptions) (node.Lease, error) {
	f.mu.Lock()
	f.lent++
	try := f.lent
	f.options = o
	f.mu.Unlock()
	addr, err := f.lend(try)
	if err != nil {
		return nil, err
	}
	if addr == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := &fakeLease{f: f, t: &http.Transport{DisableCompression: true, Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", node.ErrConnect, err)
			}
			return conn, nil
		}, ExpectContinueTimeout: time.Second}, ending: f.ending}
	l.t.Protocols.SetHTTP1(true)
	f.mu.Lock()
	f.open[l] = true
	f.mu.Unlock()
	return l, nil
}

// records waits for so many.
func (f *fakeNode) records(t *testing.T, n int) []api.Invocation {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		f.mu.Lock()
		recs := append([]api.Invocation(nil), f.recs...)
		f.mu.Unlock()
		if len(recs) >= n {
			return recs
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records, want %d", len(recs), n)
		}
		time.Sleep(time.Millisecond)
	}
}

type fakeLease struct {
	f      *fakeNode
	t      *http.Transport
	ending chan struct{}
}

func (*fakeLease) Instance() string     { return "i-1" }
func (*fakeLease) Start() api.StartKind { return api.StartRestore }
func (*fakeLease) Phases() api.Phases   { return api.Phases{Spawn: time.Millisecond} }

func (l *fakeLease) Gone() <-chan struct{} { return l.f.gone }
func (l *fakeLease) Err() error {
	select {
	case <-l.f.gone:
		return l.f.goneErr
	default:
		return nil
	}
}

func (l *fakeLease) Ending() <-chan struct{} { return l.ending }
func (l *fakeLease) Transport(h2 bool) http.RoundTripper {
	if !h2 {
		return l.t
	}
	t := l.t.Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}
func (l *fakeLease) Release(r api.Invocation) {
	l.t.CloseIdleConnections()
	l.f.mu.Lock()
	delete(l.f.open, l)
	l.f.mu.Unlock()
	l.f.Record(r)
}

// serve starts a function's server and a gateway before it.
func serve(t *testing.T, o Options, h http.HandlerFunc) (f *fakeNode, base string) {
	t.Helper()
	fn := httptest.NewUnstartedServer(h)
	fn.Config.Protocols = new(http.Protocols)
	fn.Config.Protocols.SetHTTP1(true)
	fn.Config.Protocols.SetUnencryptedHTTP2(true)
	fn.Start()
	t.Cleanup(fn.Close)
	f = newFake(t, fn.Listener.Addr().String())
	return f, before(t, f, o)
}

// before starts a gateway before a backend.
func before(t *testing.T, f *fakeNode, o Options) (base string) {
	t.Helper()
	return beforeGateway(t, New(f, o))
}

func beforeGateway(t *testing.T, g *Gateway) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url string, header ...string) (status int, body string, h http.Header) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestRoutesHeadersAndRecord(t *testing.T) {
	f, base := serve(t, Options{Domain: "bees.test"}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		fmt.Fprintf(w, "%s|%s|%s|%s|%s|%s", r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Prefix"), r.Header.Get(api.HeaderPolicy), r.Header.Get("X-Secret"))
	})
	for _, c := range []struct{ path, host, want string }{
		{"/function/fn/a/b?c=d", "", "/a/b|c=d|127.0.0.1|/function/fn||"},
		{"/function/fn", "", "/||127.0.0.1|/function/fn||"},
		{"/a%2Fb", "fn.bees.test:80", "/a%2Fb||127.0.0.1|||"},
		{"/function/f%6E/a%2Fb/%7e?z=1;y=2&a=100%&&b=%41", "", "/a%2Fb/%7e|z=1;y=2&a=100%&&b=%41|127.0.0.1|/function/fn||"},
		{"/%66unction/fn//x?", "", "//x||127.0.0.1|/function/fn||"},
		{"/function/x", "FN.Bees.Test", "/function/x||127.0.0.1|||"},
	} {
		status, body, h := get(t, base+c.path, "Host", c.host, "X-Forwarded-For", "6.6.6.6", api.HeaderPolicy, "reap", "Connection", "X-Secret", "X-Secret", "s")
		if status != 200 || body != c.want {
			t.Errorf("%s of %q: %d %q, want %q", c.path, c.host, status, body, c.want)
		}
		if h.Get("X-Hop") != "" || h.Get(api.HeaderStart) != "restore" || h.Get(HeaderInstance) != "i-1" || !strings.Contains(h.Get("Server-Timing"), "spawn;dur=1") {
			t.Errorf("headers %v", h)
		}
	}
	recs := f.records(t, 6)
	if f.options != (node.AcquireOptions{Invocation: f.options.Invocation}) || f.options.Invocation == "" {
		t.Errorf("a request on the open port chose %+v", f.options)
	}
	if r := recs[0]; r.Status != 200 || r.BytesOut == 0 || r.Phases.Total == 0 || r.Phases.Process == 0 || r.Phases.Spawn != time.Millisecond || r.Error != "" {
		t.Errorf("record %+v", r)
	}
}

func TestControlChoosesTheStart(t *testing.T) {
	f, _ := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	c := httptest.NewServer(New(f, Options{}).Control())
	defer c.Close()
	status, body, _ := get(t, c.URL+"/v1/functions/fn/invoke/a", api.HeaderPolicy, "reap", api.HeaderStart, "restore")
	if status != 200 || body != "/a" || f.options.Policy != "reap" || f.options.Start != api.StartRestore {
		t.Errorf("%d %q, options %+v", status, body, f.options)
	}
	if status, _, _ := get(t, c.URL+"/v1/functions/fn/invoke/a", api.HeaderStart, "lukewarm"); status != 400 {
		t.Errorf("an unknown start kind: %d", status)
	}
}

func TestProblems(t *testing.T) {
	for name, c := range map[string]struct {
		lend   func(int) (string, error)
		path   string
		status int
		body   string
	}{
		"no such function":  {nil, "/function/nobody/", 404, `"fn"`},
		"no function":       {nil, "/", 404, "function"},
		"removed meanwhile": {func(int) (string, error) { return "", fmt.Errorf("fn: %w", node.ErrRemoved) }, "/function/fn/", 410, "was removed while"},
		"queue full":        {func(int) (string, error) { return "", fmt.Errorf("fn: %w", node.ErrQueueFull) }, "/function/fn/", 503, "waiting"},
		"draining":          {func(int) (string, error) { return "", node.ErrDraining }, "/function/fn/", 503, "shutting"},
		"start fails":       {func(int) (string, error) { return "", errors.New("no kernel") }, "/function/fn/", 502, "no kernel"},
		"start is too slow": {func(int) (string, error) {
			return "", fmt.Errorf("not ready after 30s: %w", context.DeadlineExceeded)
		}, "/function/fn/", 502, "not ready after 30s"},
		"none in time": {func(int) (string, error) { return "", nil }, "/function/fn/", 504, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "")
			if c.status == 504 { // the others have all the time that a busy machine takes
				f.fn.Timeout = api.Duration(30 * time.Millisecond)
			}
			if c.lend != nil {
				f.lend = c.lend
			}
			status, body, h := get(t, before(t, f, Options{ListFunctions: true})+c.path)
			var p Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || status != c.status || !strings.Contains(body, c.body) || h.Get(HeaderError) == "" {
				t.Errorf("%d %s (%v), want %d with %q", status, body, err, c.status, c.body)
			}
			if status == 503 && h.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if c.lend != nil {
				if r := f.records(t, 1)[0]; r.Status != c.status || r.Error == "" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// TestNotSentIsTriedAgain lends an instance that refuses connections first.
func TestNotSentIsTriedAgain(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	good := f.lend
	f.lend = func(try int) (string, error) {
		if try == 1 {
			return "127.0.0.1:1", nil
		}
		return good(try)
	}
	if status, body, _ := get(t, base+"/function/fn/"); status != 200 || body != "ok" {
		t.Errorf("%d %q", status, body)
	}
	if recs := f.records(t, 2); recs[0].Status != 502 || recs[1].Status != 200 {
		t.Errorf("records %+v", recs)
	}
}

// TestSentIsNotRepeated counts what the function sees when it ends the
// connection without an answer, also on one that was kept open.
func TestSentIsNotRepeated(t *testing.T) {
	var seen atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for i := range 2 {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					if i == 0 {
						fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						continue
					}
					seen.Add(1)
				}
			}()
		}
	}()
	f := newFake(t, l.Addr().String())
	shared := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}}
	defer shared.CloseIdleConnections()
	g := httptest.NewServer(New(&fakeNodeShared{f, shared}, Options{}))
	defer g.Close()
	for _, h := range [][]string{nil, {"Idempotency-Key", "1"}} {
		seen.Store(0)
		if status, _, _ := get(t, g.URL+"/function/fn/", h...); status != 200 {
			t.Fatalf("the first request: %d", status)
		}
		if status, body, _ := get(t, g.URL+"/function/fn/", h...); status != 502 || !strings.Contains(body, "fn") {
			t.Errorf("the second: %d %s", status, body)
		}
		if n := seen.Load(); n != 1 {
			t.Errorf("the function saw the second request %d times", n)
		}
	}
}

// fakeNodeShared lends leases that share a transport, as those of one instance do.
type fakeNodeShared struct {
	*fakeNode
	shared *http.Transport
}

func (f *fakeNodeShared) Acquire(context.Context, string, node.AcquireOptions) (node.Lease, error) {
	return &sharedLease{fakeLease{f: f.fakeNode, t: &http.Transport{}}, f.shared}, nil
}

type sharedLease struct {
	fakeLease
	shared *http.Transport
}

func (l *sharedLease) Transport(bool) http.RoundTripper { return l.shared }

func TestStreamsBothWays(t *testing.T) {
	_, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "got %s\n", lines.Text())
			rc.Flush()
		}
		w.Header().Set("X-Sum", "42")
	})
	pr, pw := io.Pipe()
	req, err := http.NewRequest("POST", base+"/function/fn/", pr)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answers := bufio.NewReader(resp.Body)
	for i := range 3 {
		fmt.Fprintf(pw, "line %d\n", i)
		if got, err := answers.ReadString('\n'); err != nil || got != fmt.Sprintf("got line %d\n", i) {
			t.Fatalf("%q %v", got, err)
		}
	}
	pw.Close()
	if _, err := io.ReadAll(answers); err != nil || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailers %v, %v", resp.Trailer, err)
	}
}

func TestWebSocket(t *testing.T) {
	f, base := serve(t, Options{}, echoSocket)
	c := openSocket(t, base)
	for i := range 3 {
		want := fmt.Sprint("bee ", i)
		if err := c.Write(t.Context(), websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || string(got) != want {
			t.Fatalf("%q %v", got, err)
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
	if r := f.records(t, 1)[0]; r.Status != http.StatusSwitchingProtocols || r.Failure != "" {
		t.Errorf("record %+v", r)
	}
}

func TestClientGoesAway(t *testing.T) {
	ended := make(chan struct{})
	f, base := serve(t, Options{}, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", base+"/function/fn/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Fatal("an answer came")
	}
	<-ended
	if r := f.records(t, 1)[0]; r.Status != statusClientGone {
		t.Errorf("record %+v", r)
	}
}

func TestManyAtOnce(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.RawQuery) })
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 20 {
				want := fmt.Sprintf("n=%d-%d", i, j)
				if status, body, _ := get(t, base+"/function/fn/?"+want); status != 200 || body != want {
					t.Errorf("%d %q, want %q", status, body, want)
				}
			}
		})
	}
	wg.Wait()
	ids := map[string]bool{}
	for _, r := range f.records(t, 320) {
		ids[r.ID] = true
	}
	if len(ids) != 320 {
		t.Errorf("%d different ids of 320", len(ids))
	}
}

func FuzzRoute(f *testing.F) {
	f.Add("fn.localhost:80", "/function/x/y")
	f.Add("", "/function/")
	f.Fuzz(func(t *testing.T, host, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		escaped := u.EscapedPath()
		p, ok := route(host, "localhost", u)
		if ok && (p.function == "" || !strings.HasSuffix(escaped+"/", p.path) && !strings.HasSuffix(escaped, p.path)) {
			t.Errorf("%q %q gives %+v", host, path, p)
		}
		if p.strip(u); ok && u.EscapedPath() != p.path {
			t.Errorf("%q %q: the function gets %q, want %q", host, path, u.EscapedPath(), p.path)
		}
		routeControl(u)
	})
}
