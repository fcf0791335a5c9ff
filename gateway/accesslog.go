package gateway

import (
	"log/slog"
	"net/http"

	"github.com/skep-dev/skep/api"
)

// logLevel is that of the access log's lines.
func (g *Gateway) logLevel() slog.Level {
	if g.opts.AccessLog {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// logAccess writes the line of an invocation. The query is left out: it is
// where secrets are.
func (g *Gateway) logAccess(r *http.Request, x *exchange) {
	level := g.logLevel()
	if !g.opts.Log.Enabled(r.Context(), level) {
		return
	}
	rec := &x.rec
	attrs := []slog.Attr{
		slog.String("invocation", rec.ID), slog.String("request_id", x.requestID), slog.String("client", g.clientAddr(r)),
		slog.String("function", rec.Function), slog.String("method", r.Method), slog.String("host", r.Host), slog.String("path", r.URL.Path),
		slog.String("proto", r.Proto), slog.Int("status", rec.Status), slog.Duration("total", rec.Phases.Total),
		slog.Int64("bytes_in", rec.BytesIn), slog.Int64("bytes_out", rec.BytesOut),
	}
	if x.lease != nil {
		attrs = append(attrs, slog.String("instance", x.lease.Instance()), slog.String("start", string(x.lease.Start())), slog.Duration("queue", rec.Phases.Queue))
	}
	if rec.Failure != "" {
		attrs = append(attrs, slog.String("failure", string(rec.Failure)), slog.String("error", rec.Error))
	}
	g.opts.Log.LogAttrs(r.Context(), level, "request", attrs...)
}

// logOwn writes the line of a request that named no function.
func (g *Gateway) logOwn(r *http.Request, status int, why string) {
	level := g.logLevel()
	if !g.opts.Log.Enabled(r.Context(), level) {
		return
	}
	g.opts.Log.LogAttrs(r.Context(), level, "request",
		slog.String("client", g.clientAddr(r)), slog.String("method", r.Method), slog.String("host", r.Host), slog.String("path", r.URL.Path),
		slog.String("proto", r.Proto), slog.Int("status", status), slog.String("failure", string(api.FailureClient)), slog.String("error", why))
}
