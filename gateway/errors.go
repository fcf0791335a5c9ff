package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// Problem is the body of every answer that is the gateway's own: one of RFC 9457, as
// those of the control API.
type Problem struct {
	Title      string   `json:"title"`
	Status     int      `json:"status"`
	Error      string   `json:"detail"`
	Function   string   `json:"function,omitempty"`
	Instance   string   `json:"instance,omitempty"`
	Invocation string   `json:"invocation,omitempty"`
	Functions  []string `json:"functions,omitempty"` // with 404: those that there are
}

// HeaderError marks answers that are skep's own, not the function's.
const HeaderError = "Skep-Error"

// maxNames bounds the names in a 404.
const maxNames = 50

// answerNotFound names the functions that there are, to those who may know.
func (g *Gateway) answerNotFound(w http.ResponseWriter, r *http.Request, name string, mayKnow bool) {
	p := Problem{Error: "no function is named here: use <name>." + g.opts.Domain + " or " + pathPrefix + "<name>/"}
	if name != "" {
		p.Error, p.Function = fmt.Sprintf("there is no function %q", name), name
	}
	if mayKnow || g.opts.ListFunctions {
		p.Functions = g.backend.FunctionNames()
		if n := len(p.Functions); n > maxNames {
			p.Functions = append(p.Functions[:maxNames:maxNames], fmt.Sprintf("… and %d more", n-maxNames))
		}
	}
	g.answerOwn(w, r, http.StatusNotFound, p)
}

// answerOwn answers what no function is asked for.
func (g *Gateway) answerOwn(w http.ResponseWriter, r *http.Request, status int, p Problem) {
	g.logOwn(r, status, p.Error)
	lastDeadlines(http.NewResponseController(w), r.ContentLength != 0)
	writeProblem(w, status, p)
}

// answerError is what the client gets when no answer of the function can be had.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	status, failure, err := x.judge(err)
	x.rec.Status, x.rec.Failure, x.rec.Error = status, failure, err.Error()
	x.limits.stop(x.body.halfRead())
	if x.tunnel != nil {
		return // the connection is no HTTP connection any more
	}
	own := w.(*responseWriter).ResponseWriter // which no limit has closed
	h := own.Header()
	p := Problem{Error: err.Error(), Function: x.fn.Name, Invocation: x.rec.ID}
	if x.lease != nil {
		p.Instance = x.lease.Instance()
		h.Set(api.HeaderStart, string(x.lease.Start()))
	}
	h.Set(api.HeaderInvocation, x.rec.ID)
	if errors.Is(err, node.ErrQueueFull) || errors.Is(err, node.ErrDraining) {
		h.Set("Retry-After", strconv.Itoa(retryAfter(err)))
	}
	if r.ProtoMajor == 1 && (x.body.halfRead() || x.gone.Err() != nil) {
		h.Set("Connection", "close") // nobody knows where the next request would begin
	}
	writeProblem(own, status, p)
}

// retryAfter is in how many seconds it is worth to ask again: when those who wait now are
// likely to be served, but within two minutes, since all of that is an estimate.
func retryAfter(err error) int {
	var full *node.QueueFullError
	if !errors.As(err, &full) {
		return 1
	}
	return int(min(max(1, math.Ceil(full.After.Seconds())), 120))
}

// judge says what became of a request that the function did not answer, and
// whose doing that is.
func (x *exchange) judge(err error) (int, api.Failure, error) {
	why, bad := x.limits.why.Load(), x.body.err()
	var tooLarge *http.MaxBytesError
	switch {
	case why != nil:
		return why.status, why.failure, why
	case errors.As(bad, &tooLarge) || errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, api.FailureClient, fmt.Errorf("the request's body has more than the %d bytes that are let through", tooLarge.Limit)
	case bad != nil:
		return http.StatusBadRequest, api.FailureClient, fmt.Errorf("the request's body is broken after %d bytes: %w", x.bytesIn.Load(), bad)
	// What is wrong with the request itself, and what the node says to it, holds
	// whether or not the client has left meanwhile.
	case !x.asked:
		return http.StatusBadRequest, api.FailureClient, err
	case errors.Is(err, node.ErrNoFunction):
		return http.StatusNotFound, api.FailureClient, err
	case errors.Is(err, node.ErrRemoved):
		return http.StatusGone, api.FailurePlatform, err
	case errors.Is(err, node.ErrQueueFull):
		return http.StatusServiceUnavailable, api.FailureQueue, err
	case errors.Is(err, node.ErrDraining):
		return http.StatusServiceUnavailable, api.FailurePlatform, err
	case errors.Is(err, node.ErrNoneWarm):
		return http.StatusConflict, api.FailureClient, err
	case errors.Is(err, node.ErrStoreUnavailable) && x.tunnel == nil && x.gone.Err() == nil:
		return http.StatusServiceUnavailable, api.FailurePlatform, err
	case errors.Is(err, node.ErrNoSnapshot):
		return http.StatusConflict, api.FailureClient, err
	case x.untried(err):
		return http.StatusBadRequest, api.FailureClient, fmt.Errorf("the request cannot be passed on: %w", err)
	case x.tunnel != nil:
		return http.StatusSwitchingProtocols, api.FailureClient, fmt.Errorf("the client went away: %w", err)
	case x.gone.Err() != nil:
		return statusClientGone, api.FailureClient, errors.New("the client went away, or closed its side of the connection, before the answer")
	case x.lease == nil:
		return http.StatusBadGateway, api.FailurePlatform, err
	case errors.Is(err, io.EOF) && x.lease.Err() == nil:
		err = errNoAnswer
	}
	return http.StatusBadGateway, x.instanceFailure(), err
}

// untried says that an instance was there and the request was not even tried on
// it: there is something in it that cannot be passed on, such as a trailer whose
// name is none.
func (x *exchange) untried(err error) bool {
	return x.lease != nil && !x.connected && !errors.Is(err, node.ErrConnect) && !errors.Is(err, context.Canceled) && x.lease.Err() == nil
}

func writeProblem(w http.ResponseWriter, status int, p Problem) {
	p.Title, p.Status = http.StatusText(status), status
	if p.Title == "" { // 499 is not of HTTP itself
		p.Title = "Client Closed Request"
	}
	w.Header().Set("Content-Type", api.ProblemType)
	w.Header().Set(HeaderError, "true")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(p)
}
