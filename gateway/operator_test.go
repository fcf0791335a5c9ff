package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/node"
)

func TestHealthAndReadiness(t *testing.T) {
	f := newFake(t, "")
	base := before(t, f, Options{})
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body, _ := get(t, base+path); status != 200 || body != "ok\n" {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	f.unready = node.ErrDraining
	if status, body, _ := get(t, base+"/readyz"); status != 503 || !strings.Contains(body, "shutting down") {
		t.Errorf("while it drains: %d %s", status, body)
	}
	if status, _, _ := get(t, base+"/healthz"); status != 200 {
		t.Errorf("while it drains, health: %d", status)
	}
}

func TestFunctionsAreListedToWhoMayKnow(t *testing.T) {
	f := newFake(t, "")
	for _, list := range []bool{false, true} {
		base := before(t, f, Options{ListFunctions: list})
		for _, path := range []string{"/", "/function/other/"} {
			var p Problem
			status, body, _ := get(t, base+path)
			if err := json.Unmarshal([]byte(body), &p); err != nil || status != 404 || (len(p.Functions) == 1) != list {
				t.Errorf("listed %v, %s: %d %s %v", list, path, status, body, err)
			}
		}
	}
}

func TestForwardedHeaders(t *testing.T) {
	show := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s|%s|%s|%s", r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Real-Ip"), r.Header.Get("X-Forwarded-Prefix"))
	}
	for prefix, want := range map[string]string{
		"127.0.0.0/8": "6.6.6.6, 127.0.0.1|http|6.6.6.6|/p",
		"10.0.0.0/8":  "127.0.0.1|http||",
	} {
		_, base := serve(t, Options{TrustForwarded: []netip.Prefix{netip.MustParsePrefix(prefix)}}, show)
		_, body, _ := get(t, base, "Host", "fn.localhost", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Real-Ip", "6.6.6.6", "X-Forwarded-Prefix", "/p")
		if body != want {
			t.Errorf("from one who is trusted if in %s: %q, want %q", prefix, body, want)
		}
	}
}

func TestClientAddress(t *testing.T) {
	g := New(nil, Options{TrustForwarded: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	for _, c := range []struct{ remote, forwarded, want string }{
		{"1.2.3.4:5", "6.6.6.6", "1.2.3.4"},
		{"10.0.0.1:5", "6.6.6.6, 1.2.3.4", "1.2.3.4"},
		{"10.0.0.1:5", "6.6.6.6, 1.2.3.4,10.9.9.9", "1.2.3.4"},
		{"[::1]:5", "nonsense", "::1"},
		{"10.0.0.1:5", "", "10.0.0.1"},
		{"@", "1.2.3.4", "@"}, // over the control socket
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": {c.forwarded}}}
		if got := g.clientAddr(r); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// lines waits for so many, and reads them.
func lines(t *testing.T, log *testenv.Output, n int) (out []map[string]any) {
	t.Helper()
	text := ""
	for deadline := time.Now().Add(10 * time.Second); strings.Count(text, "\n") < n && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		text = log.String()
	}
	for line := range strings.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	if len(out) != n {
		t.Fatalf("%d lines, want %d:\n%s", len(out), n, text)
	}
	return out
}

// The function gets a request's id, the client's if that is sane, and the log
// has it beside the invocation's.
func TestRequestIDAndAccessLog(t *testing.T) {
	for _, c := range []struct{ sent, want string }{{"", ""}, {"a-1", "a-1"}, {"a b", ""}, {strings.Repeat("x", 129), ""}, {"a\"b", ""}} {
		log := &testenv.Output{}
		f, base := serve(t, Options{AccessLog: true, Log: slog.New(slog.NewJSONHandler(log, nil))}, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", r.Header.Get(HeaderRequestID), r.Header.Get(api.HeaderInvocation))
		})
		_, body, h := get(t, base+"/function/fn/secret?token=1", HeaderRequestID, c.sent, api.HeaderInvocation, "forged")
		id := f.records(t, 1)[0].ID
		want := c.want
		if want == "" {
			want = id
		}
		if body != want+" "+id || h.Get(api.HeaderInvocation) != id {
			t.Errorf("sent %q: the function got %q, the invocation is %s", c.sent, body, id)
		}
		get(t, base+"/nothing")
		got := lines(t, log, 2)
		if l := got[0]; l["invocation"] != id || l["request_id"] != want || l["status"] != 200.0 || l["function"] != "fn" || l["instance"] != "i-1" || l["path"] != "/function/fn/secret" || l["client"] != "127.0.0.1" {
			t.Errorf("line %v", l)
		}
		if l := got[1]; l["status"] != 404.0 || l["path"] != "/nothing" {
			t.Errorf("line %v", l)
		}
	}
}

func TestAccessLogTellsWhoseDoing(t *testing.T) {
	log := &testenv.Output{}
	f := newFake(t, "")
	f.lend = func(int) (string, error) { return "", errors.New("no kernel") }
	g := New(f, Options{AccessLog: true, Log: slog.New(slog.NewJSONHandler(log, nil))})
	status, _, _ := get(t, beforeGateway(t, g)+"/function/fn/")
	if l := lines(t, log, 1)[0]; status != 502 || l["failure"] != "platform" || l["error"] != "no kernel" {
		t.Errorf("%d, line %v", status, l)
	}
}

// A Host that is a function's name and nothing else names it, as loaders send it that call
// functions at an address; all else that has no domain is some name of this machine.
func TestBareHost(t *testing.T) {
	_, base := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	for _, test := range []struct{ host, path, body string }{
		{"fn", "/a/b", "/a/b"},
		{"FN:7080", "/", "/"},
		{"fn", "/function/fn/x", "/x"}, // a path that names a function does so whatever the host
		{"thishost", "/function/fn/x", "/x"},
	} {
		if status, body, _ := get(t, base+test.path, "Host", test.host); status != 200 || body != test.body {
			t.Errorf("%s %s: %d %q, want %q", test.host, test.path, status, body, test.body)
		}
	}
	if status, body, _ := get(t, base+"/healthz", "Host", "fn"); status != 200 || body == "/healthz" {
		t.Errorf("/healthz of fn: %d %q, want the gateway's", status, body)
	}
	for _, host := range []string{"thishost", "fn.elsewhere", "10.1.2.3"} {
		if status, _, _ := get(t, base+"/x", "Host", host); status != 404 {
			t.Errorf("%s: %d, want 404", host, status)
		}
	}
}
