package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// statusClientGone is recorded, and sent to nobody, when the client went away.
const statusClientGone = 499

// exchange is one request on its way through the gateway.
type exchange struct {
	backend  Backend
	fn       api.Function
	opts     node.AcquireOptions
	prefix   string
	trust    bool
	client   context.Context // ends when the client goes away
	began    time.Time
	lease    node.Lease
	rec      api.Invocation
	phases   api.Phases
	headers  time.Time // when the function's answer began
	bytesIn  atomic.Int64
	bytesOut int64
	length   int64 // of the answer's body, where it is known
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// pass takes a request to its function and back, and leaves one record.
func (g *Gateway) pass(w http.ResponseWriter, r *http.Request, name, prefix string, experiments bool) {
	began := time.Now()
	fn, ok := g.backend.Function(name)
	if !ok {
		g.answerNotFound(w, name)
		return
	}
	x := &exchange{backend: g.backend, fn: fn, prefix: prefix, trust: g.opts.TrustForwarded, client: r.Context(), began: began}
	x.rec = api.Invocation{ID: newID(), Function: name, Time: began}
	if experiments {
		if err := x.choose(r.Header); err != nil {
			x.rec.Failure = api.FailureClient
			answerJSON(w, http.StatusBadRequest, x, err)
			return
		}
	}
	r.Header.Del(api.HeaderStart)
	r.Header.Del(api.HeaderPolicy)
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), exchangeKey{}, x), fn.Timeout.D())
	defer cancel()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countedBody{r.Body, &x.bytesIn}
		if r.ProtoMajor == 1 {
			http.NewResponseController(w).EnableFullDuplex() // the function may answer before it has read all
		}
	}
	out := &countedWriter{ResponseWriter: w, x: x}
	defer x.finish(ctx) // also when the copy is aborted by a panic, which goes on up to net/http
	g.proxy.ServeHTTP(out, r)
}

// choose reads the headers by which an experiment says how to start.
func (x *exchange) choose(h http.Header) error {
	x.opts.Policy = h.Get(api.HeaderPolicy)
	switch s := api.StartKind(h.Get(api.HeaderStart)); s {
	case "", api.StartBoot, api.StartRestore, api.StartWarm:
		x.opts.Start = s
		return nil
	default:
		return fmt.Errorf("%s is %q: want boot, restore or warm", api.HeaderStart, s)
	}
}

// finish gives the lease back and stores the record.
func (x *exchange) finish(ctx context.Context) {
	now := time.Now()
	if x.lease != nil {
		p := x.lease.Phases()
		p.Connect, p.Process = x.phases.Connect, x.phases.Process
		x.phases = p
	}
	if !x.headers.IsZero() {
		x.phases.Stream = now.Sub(x.headers)
	}
	x.phases.Total = now.Sub(x.began)
	x.rec.Phases = x.phases
	x.rec.BytesIn, x.rec.BytesOut = x.bytesIn.Load(), x.bytesOut
	switch {
	case x.client.Err() != nil && x.rec.Error == "":
		x.rec.Status, x.rec.Failure, x.rec.Error = statusClientGone, api.FailureClient, "the client went away"
	case ctx.Err() != nil && x.rec.Error == "":
		x.rec.Failure = api.FailureTimeout
		x.rec.Error = fmt.Sprintf("the answer was not complete within the timeout of %v", x.fn.Timeout)
	}
	if x.lease != nil {
		x.lease.Release(x.rec)
		return
	}
	x.backend.Record(x.rec)
}

// rewrite makes the function's request of the client's.
func (g *Gateway) rewrite(r *httputil.ProxyRequest) {
	x := exchangeOf(r.In.Context())
	strip(r.Out.URL, x.prefix)
	r.Out.URL.Scheme, r.Out.URL.Host = "http", x.fn.Name
	r.Out.Host = r.In.Host
	if x.trust {
		for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
			if v, ok := r.In.Header[h]; ok {
				r.Out.Header[h] = v
			}
		}
	}
	r.SetXForwarded()
	if x.prefix != "" {
		r.Out.Header.Set("X-Forwarded-Prefix", x.prefix)
	}
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header.Set("User-Agent", "") // or the transport would name itself
	}
}

// modifyResponse adds what the client may want to know about the start.
func modifyResponse(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	x.headers = time.Now()
	x.length = resp.ContentLength
	x.rec.Status = resp.StatusCode // an upgraded connection writes its own 101
	p := x.lease.Phases()
	p.Connect, p.Process = x.phases.Connect, x.phases.Process
	p.Total = x.headers.Sub(x.began)
	h := resp.Header
	h.Set(api.HeaderStart, string(x.lease.Start()))
	h.Set(HeaderInstance, x.lease.Instance())
	h.Set(api.HeaderInvocation, x.rec.ID)
	h.Add("Server-Timing", serverTiming(&p))
	return nil
}

// HeaderInstance names the instance that answered.
const HeaderInstance = "Skep-Instance"

// serverTiming writes phases as browsers show them, in milliseconds. The total
// is up to the response's header.
func serverTiming(p *api.Phases) string {
	b := make([]byte, 0, 256)
	p.Each(func(name string, d time.Duration) {
		if d == 0 {
			return
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, name...)
		b = append(b, ";dur="...)
		b = strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', -1, 64)
	})
	return string(b)
}

func newID() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// countedBody counts what the client sends.
type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// countedWriter counts what the client gets.
type countedWriter struct {
	http.ResponseWriter
	x *exchange
}

func (w *countedWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.x.rec.Status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.x.bytesOut += int64(n)
	if err == nil && w.x.bytesOut < w.x.length {
		err = http.NewResponseController(w.ResponseWriter).Flush() // the rest may take its time
	}
	return n, err
}

// Unwrap lets http.ResponseController flush, hijack and read in full duplex.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var errNoAnswer = errors.New("the function's server ended the connection without an answer")
