package control_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// How the daemon is can be asked without a token, and nothing else can.
func TestHealth(t *testing.T) {
	n := controltest.New()
	h, err := control.RequireToken("0123456789abcdef", nil, control.New(control.Options{Node: n}).Handler())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	want := func(path string, status int, says string) {
		t.Helper()
		if code, body := ask(path); code != status || !strings.Contains(body, says) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, status, says)
		}
	}
	want("/healthz", http.StatusOK, "ok")
	want("/readyz", http.StatusOK, "ok")
	want("/v1/version", http.StatusUnauthorized, "token")
	n.Unready = errors.New("shutting down")
	want("/healthz", http.StatusOK, "ok")
	want("/readyz", http.StatusServiceUnavailable, "shutting down")
	n.Unhealthy = errors.New("the database is gone")
	want("/healthz", http.StatusServiceUnavailable, "database")
}
