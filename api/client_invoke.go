package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// InvokeRequest is one request to a function, sent through the control API.
type InvokeRequest struct {
	Function string
	Method   string // empty: GET without a Body, POST with one
	Path     string // path and query on the function's server; empty: "/"
	Header   http.Header
	Body     io.Reader
	Start    StartKind // empty: as it comes
	Policy   string    // empty: the function's
}

// Invoke sends a request to a function and returns the function's answer,
// whatever its status; the caller closes its body. The error is about the way
// there. HeaderInvocation in the answer names the record.
func (c *Client) Invoke(ctx context.Context, r InvokeRequest) (*http.Response, error) {
	method := r.Method
	if method == "" {
		method = http.MethodGet
		if r.Body != nil {
			method = http.MethodPost
		}
	}
	path := "/v1/functions/" + url.PathEscape(r.Function) + "/invoke/" + strings.TrimPrefix(r.Path, "/")
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r.Body)
	if err != nil {
		return nil, err
	}
	for k, v := range r.Header {
		req.Header[k] = v
	}
	if r.Start != "" {
		req.Header.Set(HeaderStart, string(r.Start))
	}
	if r.Policy != "" {
		req.Header.Set(HeaderPolicy, r.Policy)
	}
	return c.send(req)
}
