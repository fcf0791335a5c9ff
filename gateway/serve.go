package gateway

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"
)

// Options of a gateway. The zero value is useful.
type Options struct {
	Domain string // functions are at <name>.<Domain>; default "localhost"
	// Experiments lets requests on the open port choose their start kind and
	// memory policy by header, as those on the control API always may.
	Experiments bool
	// TrustForwarded keeps the X-Forwarded headers of requests and adds to them.
	// Right only behind a proxy that sets them; otherwise anyone may claim any
	// address, so by default they are replaced.
	TrustForwarded bool
	DrainTimeout   time.Duration // what requests under way get when Serve ends; default 30s
	Log            *slog.Logger
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
		ErrorLog:       slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return g
}

// Serve answers on l, HTTP/1.1 and HTTP/2 without TLS, until ctx ends. Requests
// under way then get the drain timeout.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           g,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
		ErrorLog:          log.New(logWriter{g.opts.Log}, "", 0),
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
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-ended
	return err
}

// ServeHTTP answers a request from the open port.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, prefix, ok := route(r.Host, g.opts.Domain, r.URL.Path)
	switch {
	case ok:
		g.pass(w, r, name, prefix, g.opts.Experiments)
	case r.URL.Path == "/healthz":
		w.Write([]byte("ok\n"))
	default:
		g.answerNotFound(w, "")
	}
}

// Control returns the handler for /v1/functions/{name}/invoke/… on the control
// API: the same way to the function, with the choice of start kind and policy.
func (g *Gateway) Control() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, prefix, ok := routeControl(r.URL.Path)
		if !ok {
			g.answerNotFound(w, "")
			return
		}
		g.pass(w, r, name, prefix, true)
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
