package gateway

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Options of a gateway. The zero value is useful.
type Options struct {
	Domain string // functions are at <name>.<Domain>; default "localhost"
	// Experiments lets requests on the open port choose their start kind and
	// memory policy by header, as those on the control API always may.
	Experiments bool
	// TrustForwarded are the addresses of proxies whose X-Forwarded headers are
	// kept and added to. From all others they are replaced, since anyone may claim
	// any address.
	TrustForwarded []netip.Prefix
	ListFunctions  bool          // a 404 names the functions that there are
	MaxBody        int64         // of a request, in bytes; 0: no limit
	MaxConns       int           // of clients at once, where more must wait; 0: no limit
	AccessLog      bool          // log each request at level info, not debug
	DrainTimeout   time.Duration // what requests under way get when Serve ends; default 30s
	Log            *slog.Logger
	Traces         trace.TracerProvider // of requests; nil: they have none
}

// Gateway is an http.Handler that passes requests to functions.
type Gateway struct {
	backend Backend
	opts    Options
	proxy   *httputil.ReverseProxy
}

// New returns a gateway before a backend.
func New(b Backend, o Options) *Gateway {
	if o.Domain == "" {
		o.Domain = "localhost"
	}
	o.Domain = strings.ToLower(strings.Trim(o.Domain, "."))
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{backend: b, opts: o}
	// What a function streams is meant to be seen at once. The proxy flushes each
	// piece of a body of unknown length; countedWriter those of the others. An
	// answer without a body must not be flushed: gRPC wants its only header to be
	// the end of the stream.
	g.proxy = &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		Transport:      carrier{},
		BufferPool:     &bufferPool{},
		ModifyResponse: modifyResponse,
		ErrorHandler:   answerError,
		ErrorLog:       log.New(io.Discard, "", 0), // what it says is in the invocation's own line
	}
	return g
}

// stalled is how long an HTTP/2 connection may take no byte at all, whatever
// the function's limits say of its streams.
const stalled = 15 * time.Second

// lastRecords is how long requests may take to end whose connections were closed.
const lastRecords = 2 * time.Second

// Serve answers on l, HTTP/1.1 and HTTP/2 without TLS, until ctx ends. Requests
// under way then get the drain timeout.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	requests := &underWay{Handler: g}
	srv := &http.Server{
		Handler:           requests,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000, WriteByteTimeout: stalled, SendPingTimeout: time.Minute, PingTimeout: stalled},
		ErrorLog:          log.New(logWriter{g.opts.Log}, "", 0),
		ConnContext:       withConn,
	}
	if g.opts.MaxConns > 0 {
		l = limitListener(l, g.opts.MaxConns)
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.opts.DrainTimeout)
	defer cancel()
	err := srv.Shutdown(drain)
	if err == nil {
		err = requests.wait(drain)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRecords)
		defer cancel()
		if requests.wait(last) != nil {
			g.opts.Log.Warn("ending with requests under way: what becomes of them is not recorded")
		}
	}
	<-ended
	return err
}

// ServeHTTP answers a request from the open port.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect { // this is no forward proxy, nor is a function
		w.Header().Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		g.answerOwn(w, r, http.StatusMethodNotAllowed, Problem{Error: "CONNECT is not for functions: open a WebSocket, or send another method"})
		return
	}
	p, ok := route(r.Host, g.opts.Domain, r.URL)
	switch {
	case ok:
		g.pass(w, r, p, g.opts.Experiments)
	case r.URL.Path == "/healthz":
		g.answerState(w, r, g.backend.Healthy)
	case r.URL.Path == "/readyz":
		g.answerState(w, r, g.backend.Ready)
	default:
		if p, ok := g.byBareHost(r); ok {
			g.pass(w, r, p, g.opts.Experiments)
			return
		}
		g.answerNotFound(w, r, "", false)
	}
}

// byBareHost finds the function whose name is all of the host, as loaders ask that call
// functions at an address, with a Host of their own. A name that no function has is some
// name of this machine.
func (g *Gateway) byBareHost(r *http.Request) (place, bool) {
	name := hostOf(r.Host)
	if name == "" || strings.Contains(name, ".") {
		return place{}, false
	}
	_, ok := g.backend.Function(name)
	return place{function: name, path: r.URL.EscapedPath()}, ok
}

// answerState is for who watches the daemon: healthy unless it must be started
// anew, ready if requests should be sent here.
func (g *Gateway) answerState(w http.ResponseWriter, r *http.Request, state func(context.Context) error) {
	ctx, cancel := context.WithTimeout(r.Context(), stateTimeout)
	defer cancel()
	w.Header().Set("Cache-Control", "no-store")
	if err := state(ctx); err != nil {
		g.answerOwn(w, r, http.StatusServiceUnavailable, Problem{Error: err.Error()})
		return
	}
	lastDeadlines(http.NewResponseController(w), r.ContentLength != 0)
	w.Write([]byte("ok\n"))
}

// stateTimeout is when a node that says nothing of its state is unwell.
const stateTimeout = 5 * time.Second

// Control returns the handler for /v1/functions/{name}/invoke/… on the control
// API: the same way to the function, with the choice of start kind and policy.
func (g *Gateway) Control() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := routeControl(r.URL)
		if !ok {
			g.answerNotFound(w, r, "", true)
			return
		}
		g.pass(w, r, p, true)
	})
}

// bufferPool lends the buffers that bodies are copied through.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return new([bufferSize]byte)[:]
}

func (p *bufferPool) Put(b []byte) {
	if len(b) == bufferSize {
		p.pool.Put((*[bufferSize]byte)(b))
	}
}

type logWriter struct{ log *slog.Logger }

func (l logWriter) Write(p []byte) (int, error) {
	l.log.Debug("gateway", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}
