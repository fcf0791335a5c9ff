package bucket_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestBucket runs the suite on a real S3 server, and then on one whose first endpoint
// is dead.
func TestBucket(t *testing.T) {
	s := remotetest.Serve(t)
	b := s.Open(t)
	defer b.Close()
	remotetest.TestBucket(t, b)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + l.Addr().String()
	l.Close()
	two := s.Open(t, dead)
	defer two.Close()
	if got, err := two.Get(t.Context(), "b", 10_000); err != nil || len(got) != 10_000 {
		t.Errorf("by the second endpoint: %d bytes, %v", len(got), err)
	}
	s.Kill()
	if _, err := two.Get(t.Context(), "b", 10_000); !errors.Is(err, remote.ErrUnavailable) {
		t.Errorf("from a dead store: %v", err)
	}
	s.Start(t)
	if _, err := two.Get(t.Context(), "b", 10_000); err != nil {
		t.Errorf("once it is back: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	other := s.Open(t)
	defer other.Close()
	if _, err := other.Get(t.Context(), "b", 10_000); !errors.Is(err, remote.ErrUnavailable) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with the wrong secret: %v", err)
	}
}

// TestBrokenAnswers has a proxy before the server cut answers short, stall in the midst of
// them and fail.
func TestBrokenAnswers(t *testing.T) {
	s := remotetest.Serve(t)
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	var trouble func(w http.ResponseWriter, n int) bool
	var asked atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(asked.Add(1))
		if trouble == nil || !trouble(w, n) {
			proxy.ServeHTTP(w, r)
		}
	}))
	defer front.Close()
	b, err := bucket.Open(t.Context(), bucket.Options{Name: s.Bucket, Endpoints: []string{front.URL}, Timeout: 300 * time.Millisecond, Tries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	direct := s.Open(t)
	defer direct.Close()
	if err := direct.Put(t.Context(), "k", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	half := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "10")
		_, _ = w.Write([]byte("01234"))
		_ = http.NewResponseController(w).Flush()
	}
	stall := make(chan struct{})
	defer close(stall)
	for name, c := range map[string]struct {
		trouble func(w http.ResponseWriter)
		always  bool
	}{
		"cut short once": {func(w http.ResponseWriter) { half(w); panic(http.ErrAbortHandler) }, false},
		"cut short":      {func(w http.ResponseWriter) { half(w); panic(http.ErrAbortHandler) }, true},
		"stalled once":   {func(w http.ResponseWriter) { half(w); <-stall }, false},
		"stalled":        {func(w http.ResponseWriter) { half(w); <-stall }, true},
		"failed once":    {func(w http.ResponseWriter) { w.WriteHeader(503) }, false},
		"failed":         {func(w http.ResponseWriter) { w.WriteHeader(500) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			asked.Store(0)
			trouble = func(w http.ResponseWriter, n int) bool {
				if n == 1 || c.always {
					c.trouble(w)
					return true
				}
				return false
			}
			got, err := b.Get(t.Context(), "k", 10)
			if c.always && !errors.Is(err, remote.ErrUnavailable) {
				t.Errorf("got %q, %v", got, err)
			}
			if !c.always && (err != nil || string(got) != "0123456789") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// TestClose has no connection of a closed bucket be left at the server.
func TestClose(t *testing.T) {
	var open sync.WaitGroup
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("0123456789")) }))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		}
	}
	server.Start()
	defer server.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, "any")
	}
	b, err := bucket.Open(t.Context(), bucket.Options{Name: "b", Endpoints: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := b.Get(t.Context(), "k", 10); err != nil || string(got) != "0123456789" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	b.Close()
	open.Wait() // or the test ends by its time limit
}
