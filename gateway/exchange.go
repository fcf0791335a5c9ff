package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// statusClientGone is recorded when the client went away. It is also sent: a
// client that has only closed its sending side still listens.
const statusClientGone = 499

// exchange is one request on its way through the gateway.
type exchange struct {
	backend   Backend
	fn        api.Function
	opts      node.AcquireOptions
	place     place
	trust     bool            // what the client says of where it comes from
	requestID string          // what the function gets as the request's id
	gone      context.Context // ends when the client goes away
	client    *http.ResponseController
	began     time.Time
	limits    limits
	lease     node.Lease
	rec       api.Invocation
	phases    api.Phases
	headers   time.Time // when the function's answer began
	length    int64     // of the answer's body, where it is known
	body      *requestBody
	duplex    bool    // the answer may begin while the body, of HTTP/1, is still coming
	tunnel    *tunnel // once it is an upgraded connection
	asked     bool    // an instance was asked for
	connected bool    // and its server takes connections

	span, request trace.Span      // of it, and of what was sent to the instance last
	requested     context.Context // of the latter; nil: nothing was

	bytesIn, bytesOut atomic.Int64
	// What went wrong, if anything did, with writing to the client, and with
	// reading from the function.
	sendErr   atomic.Pointer[error]
	answerErr error
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// pass takes a request to its function and back, and leaves one record.
func (g *Gateway) pass(w http.ResponseWriter, r *http.Request, p place, experiments bool) {
	began := time.Now()
	fn, ok := g.backend.Function(p.function)
	if !ok {
		g.answerNotFound(w, r, p.function, experiments)
		return
	}
	x := &exchange{backend: g.backend, fn: fn, place: p, trust: g.trusts(r.RemoteAddr), gone: r.Context(), client: http.NewResponseController(w), began: began}
	x.rec = api.Invocation{ID: newID(), Function: p.function, Time: began}
	x.requestID = requestID(r.Header, x.rec.ID)
	ctx, end := context.WithCancelCause(context.WithValue(g.trace(r.Context(), r, x), exchangeKey{}, x))
	defer end(nil)
	x.limits.of, x.limits.began, x.limits.client = fn.Limits(), began, x.client
	x.limits.end = func(c *cut) { end(c) }
	r = r.WithContext(ctx)
	out := &responseWriter{w, x}
	whole := false
	defer func() { // also when the copy is aborted by a panic, which goes on up to net/http
		x.finish(whole)
		g.logAccess(r, x)
		x.limits.settle(x.body)
		if !whole {
			reset(r)
		}
	}()
	x.limits.start(wantsH2(r))
	if err := g.admit(w, r, x, experiments); err != nil {
		answerError(out, r, err)
	} else {
		g.proxy.ServeHTTP(out, r)
	}
	whole = true
}

// admit looks at what the client asks for, and takes its body in hand.
func (g *Gateway) admit(w http.ResponseWriter, r *http.Request, x *exchange, experiments bool) error {
	if !validHost(r.Host) {
		return fmt.Errorf("the host %q is no host name", r.Host)
	}
	if experiments {
		if err := x.choose(r.Header); err != nil {
			return err
		}
	}
	r.Header.Del(api.HeaderStart)
	r.Header.Del(api.HeaderPolicy)
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if limit := g.opts.MaxBody; limit > 0 {
		if r.ContentLength > limit {
			return &http.MaxBytesError{Limit: limit}
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
	}
	x.body = &requestBody{ReadCloser: r.Body, x: x}
	r.Body = x.body
	if r.ProtoMajor == 1 {
		x.duplex = x.client.EnableFullDuplex() == nil // the function may answer before it has read all
	}
	return nil
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

// finish gives the lease back and stores the record. whole says that nothing
// cut the exchange off once the answer had begun.
func (x *exchange) finish(whole bool) {
	now := time.Now()
	x.limits.stop(x.body.halfRead())
	if x.rec.Failure == "" && (!whole || x.tunnel != nil) {
		x.rec.Failure, x.rec.Error = x.brokenOff()
	}
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
	x.rec.BytesIn, x.rec.BytesOut = x.bytesIn.Load(), x.bytesOut.Load()
	if x.lease != nil {
		x.lease.Release(x.rec)
	} else {
		x.backend.Record(x.rec)
	}
	x.traceFinish(time.Now())
}

// brokenOff says why an answer that had begun was not brought to its end, or
// how an upgraded connection ended.
func (x *exchange) brokenOff() (api.Failure, string) {
	why, sendErr := x.limits.why.Load(), x.sendErr.Load()
	switch {
	case why != nil:
		return why.failure, why.what
	case x.body.err() != nil:
		return api.FailureClient, "reading the request: " + x.body.err().Error()
	case sendErr != nil:
		return api.FailureClient, "the client went away: " + (*sendErr).Error()
	case x.gone.Err() != nil:
		return api.FailureClient, "the client went away"
	case x.tunnel != nil && x.lease.Err() == nil:
		return "", "" // one of the two closed it
	case x.lease == nil || x.answerErr == nil && x.tunnel == nil:
		return api.FailurePlatform, "the gateway did not bring the answer to its end"
	}
	x.awaitReason(x.answerErr)
	if x.lease.Err() != nil {
		return x.instanceFailure(), "the answer broke off: " + x.lease.Err().Error()
	}
	return x.instanceFailure(), "the answer broke off: " + x.answerErr.Error()
}

// rewrite makes the function's request of the client's.
func (g *Gateway) rewrite(r *httputil.ProxyRequest) {
	x := exchangeOf(r.In.Context())
	x.place.strip(r.Out.URL)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as the client sent it, whatever it is
	r.Out.URL.Scheme, r.Out.URL.Host = "http", x.fn.Name
	r.Out.Host = r.In.Host
	forward(r, x.trust)
	if x.place.prefix != "" {
		r.Out.Header.Set("X-Forwarded-Prefix", x.place.prefix)
	}
	r.Out.Header.Set(HeaderRequestID, x.requestID)
	r.Out.Header.Set(api.HeaderInvocation, x.rec.ID)
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header.Set("User-Agent", "") // or the transport would name itself
	}
}

// modifyResponse adds what the client may want to know about the start.
func modifyResponse(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	if resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body = &answerBody{resp.Body, x}
	} else if err := x.upgraded(resp); err != nil {
		return err
	}
	x.headers = time.Now()
	x.limits.answered(isStream(resp))
	x.length = resp.ContentLength
	x.rec.Status = resp.StatusCode // an upgraded connection writes its own 101
	p := x.lease.Phases()
	p.Connect, p.Process = x.phases.Connect, x.phases.Process
	p.Total = x.headers.Sub(x.began)
	h := resp.Header
	if x.duplex && x.body.halfRead() && resp.StatusCode != http.StatusSwitchingProtocols {
		h.Set("Connection", "close") // should the rest not come, nobody knows where the next request would begin
	}
	h.Set(api.HeaderStart, string(x.lease.Start()))
	h.Set(HeaderInstance, x.lease.Instance())
	h.Set(api.HeaderInvocation, x.rec.ID)
	h.Add("Server-Timing", serverTiming(&p))
	return nil
}

// upgraded refuses an upgrade that the client did not ask for; what the proxy
// refuses itself it does not close.
func (x *exchange) upgraded(resp *http.Response) error {
	want, got := resp.Request.Header.Get("Upgrade"), resp.Header.Get("Upgrade")
	if want == "" || !strings.EqualFold(want, got) {
		return fmt.Errorf("the function's server switches to protocol %q where %q was asked for", got, want)
	}
	return nil
}

// isStream says whether a response is one that may go on for as long as it is
// used.
func isStream(resp *http.Response) bool {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return true
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return kind == "text/event-stream" || kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
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

var errNoAnswer = errors.New("the function's server ended the connection without an answer")
