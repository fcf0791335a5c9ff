package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"github.com/skep-dev/skep/internal/tracing/tracingtest"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// A request is a span below the client's, what the function gets is one below that, and
// its parts are the record's phases.
func TestTrace(t *testing.T) {
	var got string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Traceparent")
		fmt.Fprint(w, "hello")
	}))
	defer server.Close()
	spans := tracingtest.Record(t)
	f := newFake(t, server.Listener.Addr().String())
	g := httptest.NewServer(New(f, Options{Traces: spans}))
	defer g.Close()
	send(t, g.URL+"/function/fn/x", traceparent)
	rec := f.records(t, 1)[0]
	if rec.Trace != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("its record is of trace %q", rec.Trace)
	}
	g.Close() // it has ended all spans
	all := spans.Names()
	root, request := all["GET fn"], all["GET fn/request"]
	if root == nil || request == nil {
		t.Fatalf("spans are %v", all)
	}
	if p := root.Parent().SpanID().String(); p != "00f067aa0ba902b7" || !root.Parent().IsRemote() {
		t.Errorf("its parent is %s", p)
	}
	want := fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e4736-%s-01", request.SpanContext().SpanID())
	if got != want {
		t.Errorf("the function gets %q, want %q", got, want)
	}
	p := rec.Phases
	for _, s := range all {
		if above := all[strings.TrimSuffix(pathOf(all, s), "/"+s.Name())]; above != s && (s.StartTime().Before(above.StartTime()) || s.EndTime().After(above.EndTime())) {
			t.Errorf("%s is not within %s", s.Name(), above.Name())
		}
	}
	for name, d := range map[string]any{"connect": p.Connect, "process": p.Process, "stream": p.Stream} {
		s := all["GET fn/request/"+name]
		if s == nil || any(tracingtest.Took(s)) != d {
			t.Errorf("%s is %v, its phase %v", name, s, d)
		}
	}
}

// A request that fails is a span of an error; who traces nothing passes on what the
// client says.
func TestTraceOfFailure(t *testing.T) {
	spans := tracingtest.Record(t)
	f := newFake(t, "")
	f.lend = func(int) (string, error) { return "127.0.0.1:1", nil } // where nobody listens
	g := httptest.NewServer(New(f, Options{Traces: spans}))
	defer g.Close()
	send(t, g.URL+"/function/fn/", "")
	g.Close()
	all := spans.Names()
	if s := all["GET fn"]; s == nil || s.Status().Code != codes.Error || !strings.HasPrefix(s.Status().Description, "function") {
		t.Errorf("spans are %v", all)
	}

	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header["Traceparent"] }))
	defer server.Close()
	off := httptest.NewServer(New(newFake(t, server.Listener.Addr().String()), Options{}))
	defer off.Close()
	send(t, off.URL+"/function/fn/", traceparent)
	if !slices.Equal(got, []string{traceparent}) {
		t.Errorf("the function gets %q", got)
	}
}

func pathOf(all map[string]sdk.ReadOnlySpan, of sdk.ReadOnlySpan) string {
	for path, s := range all {
		if s == of {
			return path
		}
	}
	return ""
}

func send(t *testing.T, url, traceparent string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if traceparent != "" {
		req.Header.Set("Traceparent", traceparent)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
