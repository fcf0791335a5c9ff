package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// Problem is the body of every answer that is the gateway's own.
type Problem struct {
	Error      string   `json:"error"`
	Function   string   `json:"function,omitempty"`
	Instance   string   `json:"instance,omitempty"`
	Invocation string   `json:"invocation,omitempty"`
	Functions  []string `json:"functions,omitempty"` // with 404: those that there are
}

// HeaderError marks answers that are skep's own, not the function's.
const HeaderError = "Skep-Error"

// maxNames bounds the names in a 404.
const maxNames = 50

func (g *Gateway) answerNotFound(w http.ResponseWriter, name string) {
	p := Problem{Error: "no function is named here: use <name>." + g.opts.Domain + " or " + pathPrefix + "<name>/", Functions: g.backend.FunctionNames()}
	if name != "" {
		p.Error, p.Function = fmt.Sprintf("there is no function %q", name), name
	}
	if n := len(p.Functions); n > maxNames {
		p.Functions = append(p.Functions[:maxNames:maxNames], fmt.Sprintf("… and %d more", n-maxNames))
	}
	writeProblem(w, http.StatusNotFound, p)
}

// answerError is what the client gets when no answer of the function can be had.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	status, failure := http.StatusBadGateway, api.FailurePlatform
	if x.lease != nil {
		failure = api.FailureFunction
	}
	switch {
	case x.client.Err() != nil:
		status, failure, err = statusClientGone, api.FailureClient, errors.New("the client went away")
	case errors.Is(err, node.ErrNoFunction):
		status, failure = http.StatusNotFound, api.FailureClient
	case errors.Is(err, node.ErrQueueFull):
		status, failure = http.StatusServiceUnavailable, api.FailureQueue
		w.Header().Set("Retry-After", "1")
	case errors.Is(err, node.ErrDraining):
		status, failure = http.StatusServiceUnavailable, api.FailurePlatform
		w.Header().Set("Retry-After", "1")
	case errors.Is(err, node.ErrNoneWarm):
		status, failure = http.StatusConflict, api.FailureClient
	case x.isTimeout(r.Context().Err()): // not err: a start that was too slow has a deadline of its own
		status, err = http.StatusGatewayTimeout, fmt.Errorf("no answer within the timeout of %v", x.fn.Timeout)
		failure = api.FailureTimeout
		if x.lease == nil {
			failure = api.FailureQueue
		}
	case errors.Is(err, io.EOF):
		err = errNoAnswer
	}
	x.rec.Failure = failure
	answerJSON(w, status, x, err)
}

func answerJSON(w http.ResponseWriter, status int, x *exchange, err error) {
	x.rec.Status, x.rec.Error = status, err.Error()
	p := Problem{Error: err.Error(), Function: x.fn.Name, Invocation: x.rec.ID}
	if x.lease != nil {
		p.Instance = x.lease.Instance()
		w.Header().Set(api.HeaderStart, string(x.lease.Start()))
	}
	w.Header().Set(api.HeaderInvocation, x.rec.ID)
	if status == statusClientGone {
		return // nobody listens
	}
	writeProblem(w, status, p)
}

func writeProblem(w http.ResponseWriter, status int, p Problem) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(HeaderError, "true")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(p)
}
