package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/node"
)

// maxTries bounds how many instances a request is taken to that none has seen.
const maxTries = 3

// carrier takes a request to an instance. One that takes no connection has seen
// nothing of it, and another is tried; what was sent is not repeated.
type carrier struct{}

func (carrier) RoundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req.Context())
	notReplayable(req)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = kept{req.Body}
	}
	x.asked = true
	for try := 1; ; try++ {
		x.opts.Invocation = x.rec.ID
		lease, err := x.backend.Acquire(req.Context(), x.fn.Name, x.opts)
		if err != nil {
			return nil, err
		}
		x.lease = lease
		x.limits.lent(lease.Ending())
		resp, err := x.carry(req)
		if err == nil {
			return resp, nil
		}
		again := errors.Is(err, node.ErrConnect) && try < maxTries && req.Context().Err() == nil
		if !again {
			x.awaitReason(err)
		}
		if gone := lease.Err(); gone != nil {
			err = fmt.Errorf("%w (%w)", gone, err)
		}
		if !again {
			return nil, err
		}
		x.limits.again()
		rec := x.rec
		rec.Failure = x.instanceFailure()
		rec.Error, rec.Status = "not sent, tried again: "+err.Error(), http.StatusBadGateway
		rec.Phases = lease.Phases()
		rec.ID += "-" + fmt.Sprint(try)
		lease.Release(rec)
		x.lease = nil
	}
}

// reasonTime is for how long an answer that broke off waits for its reason.
const reasonTime = 2 * time.Second

// awaitReason waits, after a connection of the instance's has ended with err, for
// a moment until the instance is known to be gone and why: that its server or its
// machine has ended comes another way, often later.
func (x *exchange) awaitReason(err error) {
	if !slices.ContainsFunc(connectionEnds, func(end error) bool { return errors.Is(err, end) }) {
		return
	}
	select {
	case <-x.lease.Gone():
	case <-x.gone.Done(): // nobody wants to know
	case <-time.After(reasonTime):
	}
}

// connectionEnds are the errors of a connection whose other end closed it, or is
// not there.
var connectionEnds = []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, node.ErrConnect}

// carry sends a request over the lease's transport and measures.
func (x *exchange) carry(req *http.Request) (*http.Response, error) {
	began := time.Now()
	got := began
	trace := &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			x.connected = true
			got = time.Now()
			if !i.Reused {
				x.phases.Connect = got.Sub(began)
			}
		},
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			if i.Err == nil {
				x.limits.sent()
			}
		},
	}
	rctx := x.traceRequest(req.Context(), req, began)
	ctx := httptrace.WithClientTrace(rctx, trace)
	resp, err := x.lease.Transport(wantsH2(req)).RoundTrip(req.WithContext(ctx))
	if err != nil {
		tracing.End(x.request, err)
		return nil, err
	}
	x.phases.Process = time.Since(got)
	tracing.Part(rctx, "connect", began, x.phases.Connect)
	tracing.Part(rctx, "process", got, x.phases.Process)
	resp.Request = req
	return resp, nil
}

// wantsH2 says whether the function is spoken to in HTTP/2: for gRPC, which has
// no other form. All else is HTTP/1.1, which every server has.
func wantsH2(req *http.Request) bool {
	return req.ProtoMajor == 2 && strings.HasPrefix(req.Header.Get("Content-Type"), "application/grpc")
}

// kept is a body that a transport's failure to connect does not close, so that
// it is there for the next. Its owner closes it.
type kept struct{ io.Reader }

func (kept) Close() error { return nil }

// notReplayable keeps net/http's transport from sending a request again on its
// own, which it does with those that it holds for idempotent and without a body
// when a kept connection ends before the answer: the function may have seen it.
func notReplayable(req *http.Request) {
	req.GetBody = nil
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		if (req.Body == nil || req.Body == http.NoBody) && !httpguts.HeaderValuesContainsToken(req.Header["Connection"], "upgrade") {
			req.Body = emptyBody{}
		}
	}
	for _, k := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := req.Header[k]; ok { // the transport looks for this spelling alone
			delete(req.Header, k)
			req.Header[strings.ToLower(k)] = v
		}
	}
}

// emptyBody is a body that the transport does not know to be empty.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// instanceFailure says whose doing it is that the instance did not answer: its
// function's, or, where the instance has died of something else, skep's.
func (x *exchange) instanceFailure() api.Failure {
	if gone := x.lease.Err(); gone != nil && !errors.Is(gone, node.ErrExited) {
		return api.FailurePlatform
	}
	return api.FailureFunction
}
