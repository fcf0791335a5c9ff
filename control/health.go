package control

import (
	"context"
	"io"
	"net/http"
	"time"
)

// checkTimeout bounds how long the node may take to show that it is well.
const checkTimeout = 5 * time.Second

// Health answers /healthz and /readyz, without a token: 200, or 503 with why
// not. /healthz fails when only a new start of the daemon helps, /readyz when it
// should get no requests, as while it drains.
func Health(n Node) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", check(n.Healthy))
	mux.Handle("GET /readyz", check(n.Ready))
	return mux
}

func check(ask func(context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := ask(ctx); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, err.Error()+"\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
}
