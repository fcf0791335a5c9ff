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
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/skep-dev/skep/api"
)

// beat is how often a stream in a test says something, and total the timeout of
// ordinary answers: a stream lives on beyond that.
const (
	beat  = 50 * time.Millisecond
	total = 250 * time.Millisecond
)

func echoSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		k, b, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), k, b) != nil {
			return
		}
	}
}

func openSocket(t *testing.T, base string) *websocket.Conn {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := websocket.Dial(t.Context(), "ws://"+u.Host+"/function/fn/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	return c
}

func TestWebSocketOutlivesTheTimeout(t *testing.T) {
	f, base := serve(t, Options{}, echoSocket)
	f.fn.Timeout, f.fn.IdleTimeout = api.Duration(total), api.Duration(10*time.Second)
	c := openSocket(t, base)
	for began := time.Now(); time.Since(began) < 3*total; time.Sleep(beat) {
		if err := c.Write(t.Context(), websocket.MessageText, []byte("bee")); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || string(got) != "bee" {
			t.Fatalf("%q %v", got, err)
		}
	}
	c.Close(websocket.StatusNormalClosure, "")
	if r := f.records(t, 1)[0]; r.Failure != "" || r.Phases.Total < 3*total || r.BytesOut == 0 {
		t.Errorf("record %+v", r)
	}
}

func TestIdleWebSocketEnds(t *testing.T) {
	f, base := serve(t, Options{}, echoSocket)
	f.fn.IdleTimeout = api.Duration(total)
	c := openSocket(t, base)
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("something came")
	}
	if r := f.records(t, 1)[0]; r.Failure != api.FailureClient || r.Status != 101 || !strings.Contains(r.Error, "idle_timeout") {
		t.Errorf("record %+v", r)
	}
}

// A client that does not read its WebSocket is cut off though the function
// writes without end.
func TestWebSocketThatIsNotRead(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for b := make([]byte, 64<<10); c.Write(r.Context(), websocket.MessageBinary, b) == nil; {
		}
	})
	f.fn.IdleTimeout = api.Duration(total)
	openSocket(t, base)
	if r := f.records(t, 1)[0]; r.Failure != api.FailureClient || !strings.Contains(r.Error, "did not read") {
		t.Errorf("record %+v", r)
	}
}

// events sends n, then nothing for as long as it may.
func events(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for i := range n {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(beat)
		}
		if r.URL.Path != "/ends" {
			<-r.Context().Done()
		}
	}
}

func TestEventStreams(t *testing.T) {
	many := int(3 * total / beat)
	for name, c := range map[string]struct {
		path    string
		stream  time.Duration // limit
		whole   bool
		failure api.Failure
		says    string
	}{
		"one that ends":             {"ends", 0, true, "", ""},
		"one that falls silent":     {"", 0, false, api.FailureClient, "idle_timeout"},
		"one that takes too long":   {"ends", total, false, api.FailureClient, "stream_timeout of 250ms"},
		"one that may take an hour": {"ends", time.Hour, true, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, base := serve(t, Options{}, events(many))
			f.fn.Timeout, f.fn.IdleTimeout, f.fn.StreamTimeout = api.Duration(total), api.Duration(20*beat), api.Duration(c.stream)
			resp, err := http.Get(base + "/function/fn/" + c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if (err == nil) != c.whole {
				t.Errorf("the stream ended with %v", err)
			}
			if got := strings.Count(string(b), "data:"); c.stream != total && got != many {
				t.Errorf("%d events of %d", got, many)
			}
			if r := f.records(t, 1)[0]; r.Failure != c.failure || !strings.Contains(r.Error, c.says) {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// An ordinary answer has the total limit however busy it is.
func TestOrdinaryAnswerIsLimited(t *testing.T) {
	f, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			fmt.Fprintln(w, "more")
			http.NewResponseController(w).Flush()
			time.Sleep(beat)
		}
	})
	f.fn.Timeout = api.Duration(total)
	resp, err := http.Get(base + "/function/fn/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("it ended as if that was all")
	}
	if r := f.records(t, 1)[0]; r.Failure != api.FailureTimeout || !strings.Contains(r.Error, "the timeout of 250ms") {
		t.Errorf("record %+v", r)
	}
}

// Interim answers pass, each once.
func TestInterimAnswersPass(t *testing.T) {
	_, base := serve(t, Options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	c := dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	got := answers(t, c)
	if strings.Count(got, "HTTP/1.1 103 ") != 1 || strings.Count(got, "HTTP/1.1 204 ") != 1 || strings.Count(got, "Link:") != 2 {
		t.Errorf("%q", got)
	}
	if _, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil); err != nil {
		t.Error(err)
	}
}

// A request over HTTP/2 may outlive its connection, and one that was upgraded is
// no longer the server's: Serve ends when either has left its record.
func TestServeEndsAfterItsRequests(t *testing.T) {
	begun, end := make(chan struct{}, 1), make(chan struct{}, 1)
	f, _ := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bees\r\n\r\n")
		begun <- struct{}{}
		<-end
	})
	good := f.lend
	for i, name := range []string{"upgraded", "connection gone"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- New(f, Options{}).Serve(ctx, l) }()
		base := "http://" + l.Addr().String()
		var conn net.Conn
		if name == "upgraded" {
			f.lend = good
			conn = dial(t, base, "GET /function/fn/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: bees\r\n\r\n")
			<-begun
		} else {
			f.lend = func(int) (string, error) { begun <- struct{}{}; <-end; return "", errors.New("none") }
			conn = dial(t, base, http2.ClientPreface)
			h2ask(conn)
			<-begun
			conn.Close()
		}
		cancel()
		time.AfterFunc(200*time.Millisecond, func() { conn.Close(); end <- struct{}{} }) // longer than an end that does not wait takes
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		if len(f.recs) != i+1 {
			t.Errorf("%s: %d records when it has ended, want %d", name, len(f.recs), i+1)
		}
		f.mu.Unlock()
	}
}

// h2ask asks for the function's root over a connection whose preface was sent.
func h2ask(conn net.Conn) {
	fr := http2.NewFramer(conn, conn)
	fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", "/function/fn/"}} {
		enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
}
