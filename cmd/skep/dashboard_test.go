package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A daemon without control_listen has its page served by the command, which lets in who
// has its link, to the socket's API.
func TestDashboardServes(t *testing.T) {
	socket, _ := fakeDaemon(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		c := &cli{in: strings.NewReader(""), out: in, err: io.Discard, environ: []string{"SKEP_SOCKET=" + socket}}
		ended <- c.run(ctx, []string{"dashboard", "--no-open", "--listen", "127.0.0.1:0"})
	}()
	link, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	base, ticket, ok := strings.Cut(strings.TrimSpace(link), "/#ticket=")
	if !ok {
		t.Fatalf("printed %q", link)
	}
	ask := func(method, path, body, token string) (int, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	if code, body := ask("GET", "/", "", ""); code != 200 || !strings.Contains(body, "<main") {
		t.Errorf("the page: %d %.100s", code, body)
	}
	if code, _ := ask("GET", "/v1/functions", "", ""); code != 401 {
		t.Errorf("without a session: %d", code)
	}
	_, body := ask("POST", "/ui/session", `{"ticket":"`+ticket+`"}`, "")
	_, rest, _ := strings.Cut(body, `"token":"`)
	token, _, _ := strings.Cut(rest, `"`)
	if code, body := ask("GET", "/v1/functions", "", token); code != 200 || !strings.Contains(body, "echo") {
		t.Errorf("with one: %d %s", code, body)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
