package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// dial opens a connection to a gateway and sends what a client begins with.
func dial(t *testing.T, base, text string, args ...any) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, text, args...); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// answers reads all that comes until the gateway closes the connection.
func answers(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after %q: %v", b, err)
	}
	return string(b)
}

// slow says hello when the client has left, or after a minute.
func slow(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	select {
	case <-r.Context().Done():
	case <-time.After(time.Minute):
	}
	fmt.Fprint(w, "hello")
}

// A client may leave half way, or send what is none of HTTP. It gets no success
// that the function did not have, and the instance is not blamed.
func TestClientsThatBreakOff(t *testing.T) {
	const post = "POST /function/fn/ HTTP/1.1\r\nHost: x\r\n"
	for name, c := range map[string]struct {
		send   string
		half   bool // close the sending side then
		status int
		says   string
	}{
		"half closed":            {"GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n", true, 499, "closed its side"},
		"half closed, 1.0":       {"GET /function/fn/ HTTP/1.0\r\n\r\n", true, 499, "closed its side"},
		"cut short":              {post + "Content-Length: 100\r\n\r\nabc", true, 400, "after 3 bytes"},
		"cut short in a chunk":   {post + "Transfer-Encoding: chunked\r\n\r\n64\r\nabc", true, 400, "after 3 bytes"},
		"no chunk size":          {post + "Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n", false, 400, "invalid byte in chunk length"},
		"no chunk size, later":   {post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n", false, 400, "after 3 bytes"},
		"a chunk without end":    {post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n", false, 400, "malformed chunk"},
		"a trailer of no name":   {post + "Transfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false, 400, "cannot be passed on"},
		"an upgrade to nonsense": {"GET /function/fn/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: \xff\r\n\r\n", true, 400, "invalid protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			f, base := serve(t, Options{}, slow)
			conn := dial(t, base, "%s", c.send)
			if c.half {
				conn.CloseWrite()
			}
			got := answers(t, conn)
			if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.%d %d ", strings.Count(c.send, "HTTP/1.1"), c.status)) || !strings.Contains(got, c.says) {
				t.Errorf("the client got %q, want status %d with %q", got, c.status, c.says)
			}
			if r := f.records(t, 1)[0]; r.Status != c.status || r.Failure != api.FailureClient || r.Error == "" {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// What is wrong with a request, and what the node says to it, is told whether or
// not the client's half-closed connection was noticed before; only what its going
// may have caused is put down to that.
func TestJudgedAlikeWhenTheClientHasGone(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	lost := fmt.Errorf("asking: %w", context.Canceled)
	for name, c := range map[string]struct {
		asked, lent, connected bool
		err                    error
		here, gone             int // the status for a client that is there, and for one that has gone
	}{
		"nothing to ask for":     {false, false, false, errors.New("invalid protocol"), 400, 400},
		"no function":            {true, false, false, fmt.Errorf("fn: %w", node.ErrNoFunction), 404, 404},
		"removed":                {true, false, false, fmt.Errorf("fn: %w", node.ErrRemoved), 410, 410},
		"the queue is full":      {true, false, false, fmt.Errorf("fn: %w", node.ErrQueueFull), 503, 503},
		"draining":               {true, false, false, node.ErrDraining, 503, 503},
		"none is warm":           {true, false, false, fmt.Errorf("fn: %w", node.ErrNoneWarm), 409, 409},
		"no snapshot":            {true, false, false, fmt.Errorf("starting: %w: it has none", node.ErrNoSnapshot), 409, 409},
		"cannot be passed on":    {true, true, false, errors.New("invalid trailer"), 400, 400},
		"left while it queued":   {true, false, false, lost, 502, 499},
		"left while it was sent": {true, true, true, lost, 502, 499},
		"left before it was":     {true, true, false, lost, 502, 499},
		"no connection":          {true, true, false, fmt.Errorf("%w: refused", node.ErrConnect), 502, 499},
		"broken off":             {true, true, true, io.EOF, 502, 499},
	} {
		for ctx, want := range map[context.Context]int{context.Background(): c.here, gone: c.gone} {
			x := &exchange{gone: ctx, asked: c.asked, connected: c.connected}
			if c.lent {
				x.lease = &fakeLease{f: &fakeNode{}}
			}
			if got, _, _ := x.judge(c.err); got != want {
				t.Errorf("%s, client gone: %v: status %d, want %d", name, ctx.Err() != nil, got, want)
			}
		}
	}
}

// Over HTTP/2 a client can send what no server of HTTP/1.1 lets through.
func TestHTTP2ClientsThatBreakOff(t *testing.T) {
	for name, c := range map[string]struct {
		fields []hpack.HeaderField
		data   string
		end    bool // of the request, in order
		want   string
	}{
		"no host name":      {[]hpack.HeaderField{{Name: ":authority", Value: "a b"}, {Name: ":method", Value: "GET"}}, "", true, "status 400"},
		"no method":         {[]hpack.HeaderField{{Name: ":authority", Value: "x"}, {Name: ":method", Value: "A B"}}, "", true, "status 400"},
		"less than it said": {[]hpack.HeaderField{{Name: ":authority", Value: "x"}, {Name: ":method", Value: "POST"}, {Name: "content-length", Value: "100"}}, "abc", true, "error"},
		"leaves":            {[]hpack.HeaderField{{Name: ":authority", Value: "x"}, {Name: ":method", Value: "POST"}}, "abc", false, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			f, base := serve(t, Options{}, slow)
			conn := dial(t, base, http2.ClientPreface)
			fr := http2.NewFramer(conn, conn)
			fr.WriteSettings()
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			for _, h := range append(c.fields, hpack.HeaderField{Name: ":scheme", Value: "http"}, hpack.HeaderField{Name: ":path", Value: "/function/fn/"}) {
				if strings.HasPrefix(h.Name, ":") {
					enc.WriteField(h)
				}
			}
			for _, h := range c.fields {
				if !strings.HasPrefix(h.Name, ":") {
					enc.WriteField(h)
				}
			}
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: c.data == ""})
			if c.data != "" {
				fr.WriteData(1, c.end, []byte(c.data))
			}
			if !c.end {
				f.waitLent(t)
				fr.WriteRSTStream(1, http2.ErrCodeCancel)
				if r := f.records(t, 1)[0]; r.Failure != api.FailureClient || r.Status < 400 || r.Status > 499 {
					t.Errorf("record %+v", r)
				}
				return
			}
			if got := readStatus(t, fr); !strings.HasPrefix(got, c.want) && got != "status 400" {
				t.Errorf("the client got %s, want %s", got, c.want)
			}
			if r := f.records(t, 1)[0]; r.Failure != api.FailureClient || r.Status < 400 || r.Status > 499 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// readStatus reads until the stream's answer or end.
func readStatus(t *testing.T, fr *http2.Framer) string {
	t.Helper()
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "error " + err.Error()
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return "status " + f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "error " + f.ErrCode.String()
		}
	}
}

// waitLent waits until an instance was lent.
func (f *fakeNode) waitLent(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		lent := f.lent
		f.mu.Unlock()
		if lent > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no instance was asked for")
		}
	}
}

// flood sends for as long as somebody takes it.
func flood(w http.ResponseWriter, r *http.Request) {
	b := make([]byte, 64<<10)
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// Who does not go on is cut off, and told from who cannot.
func TestIdleEnds(t *testing.T) {
	stall := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "begun")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	deaf := func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second) } // reads nothing
	reader := func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	get := func(t *testing.T, base string) *net.TCPConn {
		return dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	for name, c := range map[string]struct {
		function http.HandlerFunc
		client   func(t *testing.T, base string) *net.TCPConn // what it returns is read to its end; nil: is not
		failure  api.Failure
		status   int
		answer   string
	}{
		"a client that does not read": {flood, func(t *testing.T, base string) *net.TCPConn { get(t, base); return nil }, api.FailureClient, 200, ""},
		"a client that does not read, HTTP/2": {flood, func(t *testing.T, base string) *net.TCPConn {
			h2get(t, base+"/function/fn/")
			return nil
		}, api.FailureClient, 200, ""},
		"a client that does not send": {reader, func(t *testing.T, base string) *net.TCPConn {
			return dial(t, base, "POST /function/fn/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
		}, api.FailureClient, 408, "408 Request Timeout"},
		"a client that does not send while it is answered": {func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			fmt.Fprint(w, "begun")
			http.NewResponseController(w).Flush()
			io.Copy(w, r.Body)
		}, func(t *testing.T, base string) *net.TCPConn {
			return dial(t, base, "POST /function/fn/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
		}, api.FailureClient, 200, "begun"},
		"a function that does not go on": {stall, get, api.FailureTimeout, 200, "begun"},
		"a function that does not read": {deaf, func(t *testing.T, base string) *net.TCPConn {
			c := dial(t, base, "POST /function/fn/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
			go io.Copy(c, zeros{})
			return c
		}, api.FailureTimeout, 504, "504 Gateway Timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			f, base := serve(t, Options{}, c.function)
			f.fn.IdleTimeout = api.Duration(300 * time.Millisecond)
			if conn := c.client(t, base); conn != nil {
				if got := answers(t, conn); !strings.Contains(got, c.answer) || strings.HasSuffix(got, "0\r\n\r\n") {
					t.Errorf("the client got %q, want %q", got, c.answer)
				}
			}
			if r := f.records(t, 1)[0]; r.Failure != c.failure || r.Status != c.status || !strings.Contains(r.Error, "idle_timeout") {
				t.Errorf("record %+v, want failure %s and status %d", r, c.failure, c.status)
			}
		})
	}
}

// Who has the whole answer and does not send the rest of its request is not kept.
func TestEarlyAnswerEnds(t *testing.T) {
	_, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		io.Copy(io.Discard, conn)
	})
	conn := dial(t, base, "POST /function/fn/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
	if got := answers(t, conn); !strings.HasSuffix(got, "early") || !strings.Contains(got, "Connection: close\r\n") {
		t.Errorf("the client got %q, want all of the answer and that the connection ends", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// h2get asks for something over HTTP/2 and reads no more than the header.
func h2get(t *testing.T, url string) *http.Response {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// An instance that is to end waits for what goes on, and not for who does not read.
func TestEndingDoesNotWaitForWhoDoesNotRead(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/flood" {
			flood(w, r)
			return
		}
		time.Sleep(endingIdle + 2*lookEvery)
		fmt.Fprint(w, "worth it")
	})
	f.ending = make(chan struct{})
	dial(t, base, "GET /function/fn/flood HTTP/1.1\r\nHost: x\r\n\r\n")
	f.waitLent(t)
	working := make(chan string)
	go func() {
		_, body, _ := get(t, base+"/function/fn/")
		working <- body
	}()
	close(f.ending)
	if r := f.records(t, 1)[0]; r.Failure != api.FailureClient || !strings.Contains(r.Error, "to end") {
		t.Errorf("record %+v", r)
	}
	if body := <-working; body != "worth it" {
		t.Errorf("who waits for the function got %q", body)
	}
}

// What was not sent is tried again with its body, all of it.
func TestTriedAgainWithItsBody(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	good := f.lend
	f.lend = func(try int) (string, error) {
		if try%2 == 1 {
			return "127.0.0.1:1", nil
		}
		return good(try)
	}
	for i, body := range []io.Reader{strings.NewReader("all of it"), io.MultiReader(strings.NewReader("all "), strings.NewReader("of it"))} {
		resp, err := http.Post(base+"/function/fn/", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != "all of it" {
			t.Errorf("%d %q", resp.StatusCode, b)
		}
		if recs := f.records(t, 2*i+2); recs[2*i].Failure != api.FailureFunction || recs[2*i+1].Failure != "" {
			t.Errorf("records %+v: want the first instance blamed alone", recs)
		}
	}
}

// A function that breaks off is the one to blame, and the client sees it, even
// one for whom the connection's end is the answer's.
func TestFunctionBreaksOff(t *testing.T) {
	for _, proto := range []string{"1.0", "1.1"} {
		for _, head := range []string{"Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n64\r\n"} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					http.ReadRequest(bufio.NewReader(c))
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sabc", head)
					c.Close()
				}
			}()
			f := newFake(t, l.Addr().String())
			c := dial(t, before(t, f, Options{MaxConns: 10}), "GET /function/fn/ HTTP/%s\r\nHost: x\r\n\r\n", proto)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Errorf("%s, %q: the client believes that it has all", proto, head)
			}
			if r := f.records(t, 1)[0]; r.Failure != api.FailureFunction || !strings.Contains(r.Error, "broke off") {
				t.Errorf("record %+v", r)
			}
		}
	}
}

// Why a connection ended may be known a moment after it has: client and record are
// told, and the one is blamed whose doing it was.
func TestReasonThatComesLater(t *testing.T) {
	for _, c := range []struct {
		answer string // before the connection ends
		reason error
		want   api.Failure
	}{
		{"", fmt.Errorf("%w: exit status 7", node.ErrExited), api.FailureFunction},
		{"", errors.New("its VMM ended: signal: killed"), api.FailurePlatform},
		{"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", errors.New("its VMM ended: signal: killed"), api.FailurePlatform},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f := newFake(t, l.Addr().String())
		f.gone, f.goneErr = make(chan struct{}), c.reason
		go func() {
			if conn, err := l.Accept(); err == nil {
				http.ReadRequest(bufio.NewReader(conn))
				io.WriteString(conn, c.answer)
				conn.Close()
				time.AfterFunc(20*time.Millisecond, func() { close(f.gone) })
			}
		}()
		resp, err := http.Get(before(t, f, Options{}) + "/function/fn/")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if c.answer == "" && (resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(b), c.reason.Error())) {
			t.Errorf("%d %s, want 502 and %q", resp.StatusCode, b, c.reason)
		}
		if r := f.records(t, 1)[0]; r.Failure != c.want || !strings.Contains(r.Error, c.reason.Error()) {
			t.Errorf("record %+v, want %q and the failure %q", r, c.reason, c.want)
		}
	}
}

// Who leaves when the answer is there has got it.
func TestLeavesAfterTheAnswer(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	for i := range 20 {
		c := dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if r := f.records(t, i+1)[i]; r.Failure != "" || r.Error != "" {
			t.Errorf("record %+v", r)
		}
	}
}

// After an answer that was too late the connection is as good as before.
func TestConnectionAfterATimeout(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slow(w, r)
		}
		fmt.Fprint(w, "ok")
	})
	f.fn.ResponseTimeout = api.Duration(50 * time.Millisecond)
	c := dial(t, base, "GET /function/fn/slow HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(c)
	for i, want := range []int{504, 200} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want {
			t.Errorf("%d %s, want %d", resp.StatusCode, b, want)
		}
		if i == 0 {
			fmt.Fprint(c, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n")
		}
	}
	if r := f.records(t, 1)[0]; r.Failure != api.FailureTimeout || !strings.Contains(r.Error, "response_timeout") {
		t.Errorf("record %+v", r)
	}
}

func TestQueueTimeout(t *testing.T) {
	f := newFake(t, "")
	f.fn.QueueTimeout = api.Duration(20 * time.Millisecond)
	status, body, _ := get(t, before(t, f, Options{})+"/function/fn/")
	if r := f.records(t, 1)[0]; status != 504 || r.Failure != api.FailureQueue || !strings.Contains(body, "queue_timeout of 20ms") {
		t.Errorf("%d %s, record %+v", status, body, r)
	}
}

func TestConnectIsRefused(t *testing.T) {
	f, base := serve(t, Options{}, func(http.ResponseWriter, *http.Request) { t.Error("it reached the function") })
	for _, host := range []string{"fn.localhost:80", "x:80"} {
		c := dial(t, base, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nConnection: close\r\n\r\n", host)
		if got := answers(t, c); !strings.HasPrefix(got, "HTTP/1.1 405 ") {
			t.Errorf("%q", got)
		}
	}
	if f.lent != 0 {
		t.Error("an instance was asked for")
	}
}

// A client that asks whether to go on is told once, by the function if that
// wants nothing of it.
func TestExpectContinue(t *testing.T) {
	_, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		io.Copy(w, r.Body)
	})
	ask := "POST /function/fn%s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
	c := dial(t, base, ask, "/")
	first := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
	if _, err := io.ReadFull(c, first); err != nil || string(first) != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("%q %v", first, err)
	}
	fmt.Fprint(c, "bee")
	if got := answers(t, c); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.HasSuffix(got, "bee") {
		t.Errorf("then %q", got)
	}
	if got := answers(t, dial(t, base, ask, "/no")); !strings.HasPrefix(got, "HTTP/1.1 417 ") {
		t.Errorf("refused: %q", got)
	}
}

func TestBodyLimit(t *testing.T) {
	f, base := serve(t, Options{MaxBody: 10}, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	for i, c := range []struct {
		body io.Reader
		want int
	}{
		{strings.NewReader("0123456789"), 200},
		{strings.NewReader("0123456789a"), 413},
		{io.MultiReader(strings.NewReader("0123456789a")), 413}, // of unknown length
	} {
		resp, err := http.Post(base+"/function/fn/", "text/plain", c.body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if r := f.records(t, i+1)[i]; resp.StatusCode != c.want || (r.Failure == api.FailureClient) != (c.want == 413) {
			t.Errorf("%d, want %d: record %+v", resp.StatusCode, c.want, r)
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	_, base := serve(t, Options{MaxConns: 2}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	var open []*net.TCPConn
	for range 2 {
		c := dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	third := dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n")
	third.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := third.Read(make([]byte, 1)); err == nil {
		t.Errorf("a third connection is answered: %d bytes", n)
	}
	open[0].Close()
	third.SetReadDeadline(time.Time{})
	if _, err := http.ReadResponse(bufio.NewReader(third), nil); err != nil {
		t.Errorf("when there is a place: %v", err)
	}
}

// One that was upgraded ends when its client does, and what the client sent
// ahead of the answer, or half closed, is not lost.
func TestUpgradeIsATunnel(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		b, _ := io.ReadAll(rw)
		fmt.Fprintf(c, "%d bytes", len(b))
	})
	c := dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nahead")
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	fmt.Fprint(c, " and after")
	c.CloseWrite()
	if b, err := io.ReadAll(r); err != nil || string(b) != "15 bytes" {
		t.Errorf("%q %v", b, err)
	}
	if r := f.records(t, 1)[0]; r.Failure != "" || r.Status != 101 || r.BytesIn != 15 || r.BytesOut != 8 {
		t.Errorf("record %+v", r)
	}
}

// Nothing that a client sends ends up with the function being blamed.
func FuzzClient(f *testing.F) {
	var blamed atomic.Pointer[api.Invocation]
	fn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	defer fn.Close()
	for _, s := range []string{
		"GET /function/fn/ HTTP/1.1\r\nHost: x\r\n\r\n", "POST /function/fn/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ",
		"POST /function/fn/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n3\r\nabc\r\n0\r\na b: c\r\n\r\n",
		"GET /function/fn/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: y\r\n\r\nabc",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		n := newFake(t, fn.Listener.Addr().String())
		n.fn.Timeout = api.Duration(time.Second)
		base := before(t, n, Options{})
		c := dial(t, base, "%s", sent)
		c.CloseWrite()
		answers(t, c)
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, r := range n.recs {
			if r.Failure == api.FailureFunction || r.Failure == api.FailurePlatform {
				blamed.Store(&r)
				t.Errorf("%q: %+v", sent, r)
			}
		}
	})
}
