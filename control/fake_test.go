package control_test

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
)

// serve runs h on a unix socket until the test ends and returns its path.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := control.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, h)
	return path
}

// serveTCP is serve on a port, whose address it returns.
func serveTCP(t testing.TB, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, h)
	return l.Addr().String()
}

func run(t testing.TB, l net.Listener, h http.Handler) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, l, h, time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
}

func clientOf(t testing.TB, o control.Options) (*api.Client, string) {
	t.Helper()
	path := serve(t, conforming(t, control.New(o).Handler()))
	c := api.NewClient(api.ClientOptions{Socket: path})
	t.Cleanup(c.Close)
	return c, path
}
