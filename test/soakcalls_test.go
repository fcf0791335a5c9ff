package test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/skep-dev/skep/api"
)

// kind is a way to call a function. do makes the call, fills in what the client
// saw and sets the outcome; an error says why that is not right.
type kind struct {
	name      string
	weight    int
	functions []string
	do        func(ctx context.Context, s *soak, c *call, r *rand.Rand) error
}

var soakKinds = []*kind{
	{"plain", 24, []string{"warm", "warm", "warm", "cold", "hook", "odd", "after", "changing", "crash", "narrow"}, plainCall},
	{"plain, booted", 1, []string{"boots"}, plainCall},
	{"echo", 8, []string{"warm", "warm", "cold"}, echoCall},
	{"slow upload", 4, []string{"warm"}, slowUpload},
	{"http2", 6, []string{"warm", "warm", "cold"}, http2Call},
	{"events", 4, []string{"warm"}, eventsCall},
	{"websocket", 4, []string{"warm"}, webSocketCall},
	{"start asked for", 8, []string{"cold", "hook"}, startCall},
	{"clone hook", 3, []string{"hook"}, hookCall},
	{"random", 3, []string{"cold", "hook"}, randomCall},
	{"revision", 4, []string{"changing"}, revisionCall},
	{"half-close", 3, []string{"odd"}, halfClose},
	{"truncated upload", 3, []string{"odd"}, truncatedUpload},
	{"bad chunk", 3, []string{"odd"}, badChunk},
	{"early leaver", 4, []string{"odd", "cold"}, earlyLeaver},
	{"non-reader", 1, []string{"odd"}, nonReader},
	{"timeout", 1, []string{"slow"}, timeoutCall},
	{"exit", 1, []string{"crash"}, exitCall},
	{"burst", 1, []string{"narrow"}, burstCall},
	{"brief", 2, []string{"brief"}, plainCall},
	{"nobody", 1, []string{"nobody"}, nobodyCall},
}

func pickKind(r *rand.Rand) *kind {
	sum := 0
	for _, k := range soakKinds {
		sum += k.weight
	}
	n := r.IntN(sum)
	for _, k := range soakKinds {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	return soakKinds[0]
}

// soakClient holds the connections of the well-behaved calls.
type soakClient struct {
	gateway     string
	kept, fresh *http.Client // connections are used again, and never
	h2          *http.Client
}

func newSoakClient(s *soak) *soakClient {
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	return &soakClient{
		gateway: s.d.gateway,
		kept:    &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * soakWorkers}},
		fresh:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		h2:      &http.Client{Transport: h2},
	}
}

func (k *soakClient) close() {
	for _, c := range []*http.Client{k.kept, k.fresh, k.h2} {
		c.CloseIdleConnections()
	}
}

func (k *soakClient) url(function, path string) string {
	return "http://" + k.gateway + "/function/" + function + path
}

// ask sends a request and reads the answer to its end.
func (k *soakClient) ask(client *http.Client, req *http.Request, c *call) (string, error) {
	resp, err := client.Do(req)
	return c.saw(resp, err)
}

// get sends a GET over a connection that may have been used before.
func (k *soakClient) get(ctx context.Context, c *call, path string, r *rand.Rand) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", k.url(c.Function, path), nil)
	if err != nil {
		return "", err
	}
	client := k.kept
	if r.IntN(4) == 0 {
		client = k.fresh
	}
	return k.ask(client, req, c)
}

// saw notes an answer. The error is about the way of it, never its status.
func (c *call) saw(resp *http.Response, err error) (string, error) {
	var op *net.OpError
	c.Sent = !(errors.As(err, &op) && op.Op == "dial")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	c.Status, c.ID, c.Start = resp.StatusCode, resp.Header.Get(api.HeaderInvocation), resp.Header.Get(api.HeaderStart)
	b, err := io.ReadAll(resp.Body)
	c.Complete = err == nil
	if err != nil {
		return string(b), fmt.Errorf("the answer %d breaks off after %d bytes: %w", c.Status, len(b), err)
	}
	if c.Status == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" {
		return string(b), fmt.Errorf("%w: %s", errOverload, b)
	}
	return string(b), nil
}

// want is the outcome of a call that should be answered with a body.
func (c *call) want(body, want string, err error) error {
	switch {
	case err != nil:
		return err
	case c.Status != http.StatusOK:
		return fmt.Errorf("status %d: %s", c.Status, cut(body))
	case body != want:
		return &falseSuccess{fmt.Sprintf("%d bytes, want %d: %q", len(body), len(want), cut(body))}
	}
	c.Outcome = answered
	return nil
}

// cut is as much of a body as one wants to read.
func cut(body string) string { return body[:min(len(body), 300)] }

// wantError is the outcome of a call that must not be answered.
func (c *call) wantError(body string, err error, statuses ...int) error {
	if c.Status == http.StatusOK && c.Complete {
		return &falseSuccess{fmt.Sprintf("to a request that cannot have an answer: %q", cut(body))}
	}
	for _, s := range statuses {
		if c.Status == s {
			c.Outcome = refused
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("status %d, want one of %v: %s", c.Status, statuses, cut(body)))
}

func plainCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	name := fmt.Sprintf("bee%d", c.N)
	body, err := s.client.get(ctx, c, "/?name="+name, r)
	return c.want(body, "Hello, "+name+"!\n", err)
}

// someBytes differ from call to call and take up to 256 KiB.
func someBytes(r *rand.Rand) []byte {
	b := make([]byte, r.IntN(1<<r.IntN(19)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func echoCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	sent := someBytes(r)
	req, err := http.NewRequestWithContext(ctx, "POST", s.client.url(c.Function, "/echo"), bytes.NewReader(sent))
	if err != nil {
		return err
	}
	body, err := s.client.ask(s.client.kept, req, c)
	return c.want(body, string(sent), err)
}

// slowUpload sends a body in pieces, with pauses.
func slowUpload(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	sent := someBytes(r)
	pauses := rand.New(rand.NewPCG(r.Uint64(), 0))
	in, out := io.Pipe()
	var writer sync.WaitGroup
	defer writer.Wait()
	defer in.Close()
	writer.Go(func() {
		rest := sent
		for len(rest) > 0 {
			n := min(len(rest), 1+len(sent)/5)
			if _, err := out.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
			time.Sleep(time.Duration(pauses.IntN(200)) * time.Millisecond) // the client is slow
		}
		out.Close()
	})
	req, err := http.NewRequestWithContext(ctx, "POST", s.client.url(c.Function, "/echo"), in)
	if err != nil {
		return err
	}
	body, err := s.client.ask(s.client.fresh, req, c)
	return c.want(body, string(sent), err)
}

func http2Call(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	sent := someBytes(r)
	req, err := http.NewRequestWithContext(ctx, "POST", s.client.url(c.Function, "/echo"), bytes.NewReader(sent))
	if err != nil {
		return err
	}
	body, err := s.client.ask(s.client.h2, req, c)
	return c.want(body, string(sent), err)
}

func eventsCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	n := 1 + r.IntN(8)
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "data: %d\n\n", i)
	}
	body, err := s.client.get(ctx, c, fmt.Sprintf("/sse?n=%d&ms=%d", n, r.IntN(100)), r)
	return c.want(body, want.String(), err)
}

func webSocketCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	conn, resp, err := websocket.Dial(ctx, "ws://"+s.client.gateway+"/function/"+c.Function+"/ws", &websocket.DialOptions{HTTPClient: s.client.fresh})
	if err != nil {
		if resp == nil {
			_, err = c.saw(nil, err)
			return err
		}
		_, err = c.saw(resp, nil)
		return errors.Join(fmt.Errorf("status %d", c.Status), err)
	}
	defer conn.CloseNow()
	c.Sent, c.Status, c.ID, c.Start = true, resp.StatusCode, resp.Header.Get(api.HeaderInvocation), resp.Header.Get(api.HeaderStart)
	for i := range 1 + r.IntN(5) {
		want := fmt.Sprintf("%d of call %d", i, c.N)
		if err := conn.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
			return err
		}
		_, got, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		if string(got) != want {
			return &falseSuccess{fmt.Sprintf("the message %q came back as %q", want, got)}
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		return err
	}
	c.Complete, c.Outcome = true, answered
	return nil
}

// startCall asks for a start kind and a memory policy.
func startCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	v, err := s.d.client.Version(ctx)
	if err != nil {
		return err
	}
	want := []api.StartKind{api.StartRestore, api.StartRestore, api.StartRestore, api.StartRestore, api.StartRestore, api.StartWarm, api.StartBoot}[r.IntN(7)]
	c.Want, c.Policy = string(want), v.Policies[r.IntN(len(v.Policies))]
	name := fmt.Sprintf("bee%d", c.N)
	q := api.InvokeRequest{Function: c.Function, Path: "/?name=" + name, Start: want}
	if want == api.StartRestore {
		q.Policy = c.Policy
	} else {
		c.Policy = ""
	}
	body, err := s.invoke(ctx, c, q)
	if c.cannotStart(body, err) {
		return nil
	}
	if err := c.want(body, "Hello, "+name+"!\n", err); err != nil {
		return err
	}
	if c.Start != c.Want {
		return fmt.Errorf("start %q, want %q", c.Start, c.Want)
	}
	return nil
}

// cannotStart is the outcome of a call that asks for a warm instance when there
// is none, or for a restore when the snapshot was removed.
func (c *call) cannotStart(body string, err error) bool {
	none := err == nil && c.Status == http.StatusConflict &&
		(c.Want == string(api.StartWarm) ||
			c.Want == string(api.StartRestore) && strings.Contains(body, "no usable snapshot: it has none"))
	if none {
		c.Outcome = refused
	}
	return none
}

func (s *soak) invoke(ctx context.Context, c *call, q api.InvokeRequest) (string, error) {
	resp, err := s.d.client.Invoke(ctx, q)
	body, err := c.saw(resp, err)
	var gone *api.UnreachableError
	if errors.As(err, &gone) {
		c.Sent = false
	}
	return body, err
}

// hookCall: the hook of a clone was called once before its first request.
func hookCall(ctx context.Context, s *soak, c *call, _ *rand.Rand) error {
	c.Want = string(api.StartRestore)
	body, err := s.invoke(ctx, c, api.InvokeRequest{Function: c.Function, Path: "/clone", Start: api.StartRestore})
	if c.cannotStart(body, err) {
		return nil
	}
	return c.want(body, "1\n", err)
}

// randomCall: no two clones have the same random numbers.
func randomCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	body, err := s.client.get(ctx, c, "/urandom", r)
	if err != nil || c.Status != http.StatusOK {
		return c.want(body, body, err)
	}
	if len(body) != 64 {
		return &falseSuccess{fmt.Sprintf("random bytes are %q", cut(body))}
	}
	if other, twice := s.random.LoadOrStore(body, c.N); twice {
		return &falseSuccess{fmt.Sprintf("the same random bytes as call %v", other)}
	}
	c.Outcome = answered
	return nil
}

// revisionCall: once a deploy, a change or a rollback was acknowledged, nothing
// older answers.
func revisionCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	began := s.history.inForce()
	body, err := s.client.get(ctx, c, "/env", r)
	may := s.history.since(began)
	if err != nil || c.Status != http.StatusOK {
		return c.want(body, body, err)
	}
	_, rest, _ := strings.Cut(body, changingVar+"=")
	line, _, _ := strings.Cut(rest, "\n")
	if n, err := strconv.Atoi(line); err != nil || !slices.Contains(may, n) {
		return &falseSuccess{fmt.Sprintf("what answers says %q; from the last change that was acknowledged before, it may say one of %d", line, may)}
	}
	c.Outcome = answered
	return nil
}

// raw sends bytes, as no HTTP client would, and hands the connection to then.
func (s *soak) raw(ctx context.Context, c *call, text string, then func(*net.TCPConn) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.client.gateway)
	if err != nil {
		return err
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		conn.SetDeadline(at)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	c.Sent = true
	return then(conn.(*net.TCPConn))
}

func (s *soak) request(method, function, path string, header ...string) string {
	return fmt.Sprintf("%s /function/%s%s HTTP/1.1\r\nHost: %s\r\n%s\r\n", method, function, path, s.client.gateway, strings.Join(append(header, ""), "\r\n"))
}

// answerOf reads an answer from a connection.
func answerOf(c *call, conn net.Conn) (string, error) {
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	body, err := c.saw(resp, err)
	c.Sent = true
	return body, err
}

// halfClose says that it will send no more, and waits for the answer.
func halfClose(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	return s.raw(ctx, c, s.request("GET", c.Function, fmt.Sprintf("/sleep?ms=%d", r.IntN(400))), func(conn *net.TCPConn) error {
		conn.CloseWrite()
		body, err := answerOf(c, conn)
		if err == nil && c.Status == http.StatusOK {
			return c.want(body, "slept\n", nil)
		}
		c.Outcome = left // a server may take it for one who left
		return nil
	})
}

// truncatedUpload promises a hundred bytes, sends three, and ends.
func truncatedUpload(ctx context.Context, s *soak, c *call, _ *rand.Rand) error {
	return s.raw(ctx, c, s.request("POST", c.Function, "/echo", "Content-Length: 100")+"abc", func(conn *net.TCPConn) error {
		conn.CloseWrite()
		body, err := answerOf(c, conn)
		return c.spoiled(body, err)
	})
}

// spoiled is the outcome of a request that is not HTTP: anything but a success.
func (c *call) spoiled(body string, err error) error {
	if c.Status == http.StatusOK && c.Complete {
		return &falseSuccess{fmt.Sprintf("to a request that is not whole: %q", cut(body))}
	}
	c.Outcome = left
	if err == nil && c.Status/100 == 4 {
		c.Outcome = refused
	}
	return nil
}

func badChunk(ctx context.Context, s *soak, c *call, _ *rand.Rand) error {
	return s.raw(ctx, c, s.request("POST", c.Function, "/echo", "Transfer-Encoding: chunked")+"5\r\nhello\r\nZZ\r\n", func(conn *net.TCPConn) error {
		body, err := answerOf(c, conn)
		return c.spoiled(body, err)
	})
}

// earlyLeaver goes away before it has its answer.
func earlyLeaver(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	return s.raw(ctx, c, s.request("GET", c.Function, "/sleep?ms=3000"), func(*net.TCPConn) error {
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond) // a moment nobody chose
		c.Outcome = left
		return nil
	})
}

// nonReader sends more than all buffers hold to a function that sends it back,
// reads none of it, and goes away after a while.
func nonReader(ctx context.Context, s *soak, c *call, _ *rand.Rand) error {
	const size = 32 << 20
	return s.raw(ctx, c, s.request("POST", c.Function, "/echo", "Content-Length: "+strconv.Itoa(size)), func(conn *net.TCPConn) error {
		conn.SetReadBuffer(4096)
		conn.SetDeadline(time.Now().Add(3 * time.Second)) // then it has had enough
		n, err := io.CopyN(conn, zeros{}, size)
		if err == nil {
			return fmt.Errorf("all of %d bytes were taken of a client that reads none back", n)
		}
		c.Outcome = left
		return nil
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func timeoutCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	body, err := s.client.get(ctx, c, "/sleep?ms=10000", r)
	return c.wantError(body, err, http.StatusGatewayTimeout)
}

func exitCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	body, err := s.client.get(ctx, c, "/exit?code=3", r)
	return c.wantError(body, err, http.StatusBadGateway)
}

// burstCall is many plain calls at once to a function with a short queue.
func burstCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	plain := &kind{name: "burst", do: plainCall}
	var all sync.WaitGroup
	for range 6 {
		each := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() { s.call(c.Worker, plain, c.Function, each) })
	}
	err := plainCall(ctx, s, c, r)
	all.Wait()
	return err
}

func nobodyCall(ctx context.Context, s *soak, c *call, r *rand.Rand) error {
	body, err := s.client.get(ctx, c, "/", r)
	c.Sent = false // a request that names no function leaves no record
	return c.wantError(body, err, http.StatusNotFound)
}
