package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client speaks to a daemon's control API. Its methods may be called from many
// goroutines. Errors of the daemon are *Error, a daemon that cannot be reached
// is *UnreachableError.
type Client struct {
	http    *http.Client
	base    string // http://host
	address string // as errors name it
	token   string
}

// ClientOptions say where the daemon is. One of Socket and Address is needed.
type ClientOptions struct {
	Socket  string // path of its unix socket
	Address string // host:port of its control API over TCP
	Token   string // bearer token, for Address
}

// Bounds of what a client takes from a daemon.
const (
	maxAnswer = 256 << 20 // JSON documents
	maxError  = 1 << 20   // bodies of errors
)

// NewClient returns a client. Nothing is dialled yet.
func NewClient(o ClientOptions) *Client {
	t := &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second}
	c := &Client{http: &http.Client{Transport: t}, token: o.Token, base: "http://" + o.Address, address: o.Address}
	if o.Address == "" {
		c.base, c.address = "http://skep", o.Socket
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.Socket)
		}
	}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request and returns the answer if it is a success.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err == nil {
		return resp, nil
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" && req.Context().Err() == nil {
		return nil, &UnreachableError{Address: c.address, Err: op.Err}
	}
	return nil, err
}

// readError makes an *Error of an answer, whoever wrote it.
func readError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	e := &Error{}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if mt != ProblemType || json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(fmt.Sprintf("%s: %s", resp.Status, b))
	}
	e.Status = resp.StatusCode
	return e
}

// call sends in (nil: nothing) as JSON and reads the answer into out (nil: none).
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("reading the daemon's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// marshal encodes what a daemon is to take.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil && len(b) > MaxRequest {
		err = fmt.Errorf("a request of %d bytes: a daemon takes at most %d", len(b), MaxRequest)
	}
	return b, err
}

// Version asks what the daemon is.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.call(ctx, "GET", "/v1/version", nil, &v)
}

// Functions lists the deployed functions, by name.
func (c *Client) Functions(ctx context.Context) (fs []FunctionStatus, err error) {
	return fs, c.call(ctx, "GET", "/v1/functions", nil, &fs)
}

// Function returns one function with its instances, snapshots and newest
// invocations.
func (c *Client) Function(ctx context.Context, name string) (d FunctionDetail, err error) {
	return d, c.call(ctx, "GET", "/v1/functions/"+url.PathEscape(name), nil, &d)
}

// FunctionEnv is Function with the values of the environment, which are hidden
// otherwise.
func (c *Client) FunctionEnv(ctx context.Context, name string) (d FunctionDetail, err error) {
	return d, c.call(ctx, "GET", "/v1/functions/"+url.PathEscape(name)+"?env=true", nil, &d)
}

// RemoveFunction drains and deletes a function with its snapshots and logs.
func (c *Client) RemoveFunction(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/functions/"+url.PathEscape(name), nil, nil)
}

// Instances lists the running instances of a function, of all if function is empty.
func (c *Client) Instances(ctx context.Context, function string) (is []Instance, err error) {
	return is, c.call(ctx, "GET", "/v1/instances"+query("function", function), nil, &is)
}

// Snapshots lists published snapshots, newest first.
func (c *Client) Snapshots(ctx context.Context, function string) (ss []Snapshot, err error) {
	return ss, c.call(ctx, "GET", "/v1/snapshots"+query("function", function), nil, &ss)
}

// Snapshot returns a snapshot's manifest, as the daemon wrote it.
func (c *Client) Snapshot(ctx context.Context, id string) (m json.RawMessage, err error) {
	return m, c.call(ctx, "GET", "/v1/snapshots/"+url.PathEscape(id), nil, &m)
}

// SnapshotMemory returns what is known of a snapshot's memory, with pages page
// by page.
func (c *Client) SnapshotMemory(ctx context.Context, id string, pages bool) (m SnapshotMemory, err error) {
	path := "/v1/snapshots/" + url.PathEscape(id) + "/memory"
	if pages {
		path += "?pages=true"
	}
	return m, c.call(ctx, "GET", path, nil, &m)
}

// CreateSnapshot boots an instance of the function and snapshots it.
func (c *Client) CreateSnapshot(ctx context.Context, function string) (s Snapshot, err error) {
	return s, c.call(ctx, "POST", "/v1/snapshots", SnapshotRequest{Function: function}, &s)
}

// VerifySnapshot reads all of a snapshot and compares digests. A snapshot that
// is not what it was made as is an *Error that says how.
func (c *Client) VerifySnapshot(ctx context.Context, id string) error {
	return c.call(ctx, "POST", "/v1/snapshots/"+url.PathEscape(id)+"/verify", nil, nil)
}

// RemoveSnapshot deletes a snapshot.
func (c *Client) RemoveSnapshot(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/snapshots/"+url.PathEscape(id), nil, nil)
}

// Images lists the root disks in the daemon's store.
func (c *Client) Images(ctx context.Context) (is []Image, err error) {
	return is, c.call(ctx, "GET", "/v1/images", nil, &is)
}

// PruneImages removes the images that nothing needs, and returns them.
func (c *Client) PruneImages(ctx context.Context) (is []Image, err error) {
	return is, c.call(ctx, "POST", "/v1/images/prune", nil, &is)
}

// maxPage is how many records a daemon gives at once.
const maxPage = 10_000

// Invocations returns records, newest first; more than a daemon gives at once it asks
// for page by page.
func (c *Client) Invocations(ctx context.Context, q InvocationQuery) ([]Invocation, error) {
	all := []Invocation{}
	for left := q.Limit; ; left -= maxPage {
		q.Limit = min(left, maxPage)
		page, err := c.invocations(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if left <= maxPage || len(page) < maxPage {
			return all, nil
		}
		q.After = page[len(page)-1].ID
	}
}

func (c *Client) invocations(ctx context.Context, q InvocationQuery) (is []Invocation, err error) {
	path := "/v1/invocations"
	if v := q.values(); len(v) > 0 {
		path += "?" + v.Encode()
	}
	return is, c.call(ctx, "GET", path, nil, &is)
}

// Invocation returns one record.
func (c *Client) Invocation(ctx context.Context, id string) (i Invocation, err error) {
	return i, c.call(ctx, "GET", "/v1/invocations/"+url.PathEscape(id), nil, &i)
}

// Experiments lists directories of experiments' results, newest first.
func (c *Client) Experiments(ctx context.Context) (es []Experiment, err error) {
	return es, c.call(ctx, "GET", "/v1/experiments", nil, &es)
}

// Report returns the report of one.
func (c *Client) Report(ctx context.Context, experiment string) (r Report, err error) {
	return r, c.call(ctx, "GET", "/v1/experiments/"+url.PathEscape(experiment)+"/report", nil, &r)
}

// Figure returns a figure of a report, an SVG.
func (c *Client) Figure(ctx context.Context, experiment, figure string, narrow bool) ([]byte, error) {
	path := "/v1/experiments/" + url.PathEscape(experiment) + "/figures/" + url.PathEscape(figure)
	if narrow {
		path += "?narrow=true"
	}
	resp, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
}

// Logs copies a function's output to w.
func (c *Client) Logs(ctx context.Context, q LogQuery, w io.Writer) error {
	v := url.Values{}
	if q.Instance != "" {
		v.Set("instance", q.Instance)
	}
	if q.Invocation != "" {
		v.Set("invocation", q.Invocation)
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Tail != 0 {
		v.Set("tail", strconv.Itoa(q.Tail))
	}
	if q.Follow {
		v.Set("follow", "true")
	}
	path := "/v1/functions/" + url.PathEscape(q.Function) + "/logs"
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	resp, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

func query(name, value string) string {
	if value == "" {
		return ""
	}
	return "?" + url.Values{name: {value}}.Encode()
}
