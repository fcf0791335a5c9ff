package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// serve starts the server and returns its URL.
func serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := server()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func client(http2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	return &http.Client{Transport: tr}
}

func TestPaths(t *testing.T) {
	base := serve(t)
	path := url.QueryEscape(filepath.Join(t.TempDir(), "f"))
	for _, http2 := range []bool{false, true} {
		c := client(http2)
		defer c.CloseIdleConnections()
		for _, q := range []struct {
			method, path, body, want string
			status                   int
		}{
			{"GET", "/", "", "Hello, world!\n", 200},
			{"GET", "/?name=bee", "", "Hello, bee!\n", 200},
			{"GET", "/absent", "", "404", 404},
			{"GET", "/write?data=honey&path=" + path, "", "written", 200},
			{"GET", "/read?path=" + path, "", "honey", 200},
			{"GET", "/read?path=/absent", "", "no such file", 500},
			{"GET", "/uuid", "", "-", 200},
			{"GET", "/env", "", "PATH=", 200},
			{"GET", "/alloc?mib=2", "", "2 MiB", 200},
			{"GET", "/sleep?ms=1", "", "slept", 200},
			{"GET", "/sse?n=3", "", "data: 0\n\ndata: 1\n\ndata: 2\n\n", 200},
			{"POST", "/echo", "there and back", "there and back", 200},
			{"POST", "/clone", "", "\n", 200},
			{"DELETE", "/clone", "", "", 405},
		} {
			req, err := http.NewRequest(q.method, base+q.path, strings.NewReader(q.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", q.path, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != q.status || !strings.Contains(string(b), q.want) {
				t.Errorf("%s %s by %s: %d %q, %v: want %d with %q", q.method, q.path, resp.Proto, resp.StatusCode, b, err, q.status, q.want)
			}
			if http2 != (resp.ProtoMajor == 2) {
				t.Errorf("%s was answered by %s", q.path, resp.Proto)
			}
		}
	}
}

// TestEchoIsStreamed reads each piece before it sends the next.
func TestEchoIsStreamed(t *testing.T) {
	base := serve(t)
	for _, http2 := range []bool{false, true} {
		c := client(http2)
		r, w := io.Pipe()
		resp, err := c.Post(base+"/echo", "text/plain", io.MultiReader(strings.NewReader("first\n"), r))
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(resp.Body)
		for _, want := range []string{"first\n", "second\n", "third\n"} {
			if want != "first\n" {
				if _, err := io.WriteString(w, want); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := in.ReadString('\n'); err != nil || got != want {
				t.Fatalf("got %q, %v: want %q", got, err, want)
			}
		}
		w.Close()
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		resp.Body.Close()
		c.CloseIdleConnections()
	}
}

func TestWebSocket(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, _, err := websocket.Dial(ctx, serve(t)+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, want := range []string{"one", strings.Repeat("two", 5000)} {
		if err := c.Write(ctx, websocket.MessageBinary, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if kind, got, err := c.Read(ctx); err != nil || kind != websocket.MessageBinary || string(got) != want {
			t.Fatalf("got %d bytes, %v: want %d", len(got), err, len(want))
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}
