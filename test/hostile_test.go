package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/gateway"
)

// TestHostileClients has clients do to a function what no client should. None
// gets a success that the function did not have, none costs the function its
// warm instance, and none keeps it from the next.
func TestHostileClients(t *testing.T) {
	d := start(t, "max_body_mib = 1")
	d.hello("calm", "--max-instances", "1", "--idle-timeout", "2s", "--timeout", "30s", "--keep-alive", "30m")
	warm := d.mustGet("calm", "/").header.Get(gateway.HeaderInstance)
	const get, post = "GET /function/calm%s HTTP/1.1\r\nHost: x\r\n\r\n", "POST /function/calm/echo HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct {
		name, send string
		half       bool   // close the sending side then
		want       string // status; "": the answer is not read
	}{
		{"half closed", fmt.Sprintf(get, "/sleep?ms=300"), true, "499"},
		{"cut short", post + "Content-Length: 100\r\n\r\nabc", true, "400"},
		{"no chunk size", post + "Transfer-Encoding: chunked\r\n\r\nZZ\r\n", false, "400"},
		{"a trailer of no name", post + "Transfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n0\r\n\r\n", false, "400"},
		{"does not send", post + "Content-Length: 100\r\n\r\nabc", false, "408"},
		{"sends too much", post + "Content-Length: 1048577\r\n\r\n", false, "413"},
		{"connects", "CONNECT calm.localhost:80 HTTP/1.1\r\nHost: calm.localhost:80\r\nConnection: close\r\n\r\n", false, "405"},
		{"does not read", fmt.Sprintf(get, "/zeros?mib=64"), false, ""},
		{"does not read either", fmt.Sprintf(get, "/zeros?mib=64"), false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", d.gateway)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close() // after the next request: what is not read stays unread
			fmt.Fprint(conn, c.send)
			if c.half {
				conn.(*net.TCPConn).CloseWrite()
			}
			if c.want == "" {
				d.busy(t, "calm")
			} else if b, _ := io.ReadAll(conn); c.want == "408" { // what had begun to be echoed is not taken back
				if strings.HasSuffix(string(b), "0\r\n\r\n") {
					t.Errorf("the client believes %q to be all", b)
				}
			} else if !strings.HasPrefix(string(b), "HTTP/1.1 "+c.want+" ") {
				t.Errorf("the client got %q, want %s", b, c.want)
			}
			if a := d.mustGet("calm", "/"); a.header.Get(gateway.HeaderInstance) != warm {
				t.Errorf("the next request is answered by %s: %s is gone", a.header.Get(gateway.HeaderInstance), warm)
			}
		})
	}
	for _, r := range d.records("calm", 1) {
		if r.Failure != "" && r.Failure != api.FailureClient {
			t.Errorf("blamed on the %s: %+v", r.Failure, r)
		}
	}
	// A WebSocket in use outlives the timeout, and one that is not does not.
	d.hello("socket", "--timeout", "3s", "--idle-timeout", "2s")
	d.mustGet("socket", "/")
	ctx := d.ctx(time.Minute)
	ws, _, err := websocket.Dial(ctx, "ws://"+d.gateway+"/function/socket/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(200 * time.Millisecond) {
		if err := ws.Write(ctx, websocket.MessageText, []byte("bee")); err != nil {
			t.Fatal(err)
		}
		if _, b, err := ws.Read(ctx); err != nil || string(b) != "bee" {
			t.Fatalf("after %v: %q %v", time.Since(began), b, err)
		}
	}
	if _, _, err := ws.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("when it is not used: %v", err)
	}
	// Removing a function does not wait for who does not read.
	d.hello("held", "--timeout", "20m")
	d.mustGet("held", "/")
	conn, err := net.Dial("tcp", d.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, strings.ReplaceAll(get, "calm", "held"), "/zeros?mib=64")
	d.busy(t, "held")
	d.mustCLI("rm", "held")
	if r := d.records("held", 2)[0]; r.Failure != api.FailureClient || !strings.Contains(r.Error, "to end") {
		t.Errorf("record %+v", r)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := read(httpClient.Get("http://" + d.gateway + path)); a.status != http.StatusOK {
			t.Errorf("%s: %+v", path, a)
		}
	}
}

// busy waits until an instance of a function has a request.
func (d *daemon) busy(t *testing.T, function string) {
	t.Helper()
	d.await(function, "it has a request", time.Minute, func() error {
		is, err := d.client.Instances(context.Background(), function)
		if err != nil || len(is) != 1 || is[0].Active == 0 {
			return fmt.Errorf("%+v, %v", is, err)
		}
		return nil
	})
}
