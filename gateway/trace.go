package gateway

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing"
)

// A request is a span: below the client's, if that sends a traceparent, and above all
// that is done for it. The function gets one of the span of its own request. Where
// nothing is traced a client's traceparent passes as any header does.

// trace begins the span of a request.
func (g *Gateway) trace(ctx context.Context, r *http.Request, x *exchange) context.Context {
	if g.opts.Traces == nil {
		x.span, x.request = trace.SpanFromContext(ctx), trace.SpanFromContext(ctx)
		return ctx
	}
	ctx = tracing.Propagator.Extract(ctx, propagation.HeaderCarrier(r.Header))
	ctx, x.span = g.opts.Traces.Tracer(tracing.Scope).Start(ctx, r.Method+" "+x.fn.Name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.began),
		trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("url.path", x.place.path), tracing.Function.String(x.fn.Name)))
	x.request = x.span
	x.rec.Trace = tracing.ID(ctx)
	return ctx
}

// traceRequest begins the span of what an instance is sent, from then on, and tells it so.
func (x *exchange) traceRequest(ctx context.Context, req *http.Request, began time.Time) context.Context {
	if !x.span.SpanContext().IsValid() {
		return ctx
	}
	ctx, x.request = x.span.TracerProvider().Tracer(tracing.Scope).Start(ctx, "request", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(began),
		trace.WithAttributes(tracing.Instance.String(x.lease.Instance())))
	x.requested = ctx
	tracing.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	return ctx
}

// traceFinish ends the spans of a request whose record is written.
func (x *exchange) traceFinish(now time.Time) {
	if !x.span.IsRecording() {
		return
	}
	p := &x.rec.Phases
	if x.requested != nil {
		if !x.headers.IsZero() {
			tracing.Part(x.requested, "stream", x.headers, p.Stream)
		}
		x.request.End(trace.WithTimestamp(now))
	}
	x.span.SetAttributes(attribute.Int("http.response.status_code", x.rec.Status), tracing.Invocation.String(x.rec.ID), tracing.Queue.Int64(p.Queue.Microseconds()))
	if x.lease != nil {
		kind := x.lease.Start()
		x.span.SetAttributes(tracing.Kind.String(string(kind)), attribute.Bool("faas.coldstart", kind != api.StartWarm), tracing.Instance.String(x.lease.Instance()))
	}
	if x.rec.Failure != "" {
		x.span.SetStatus(codes.Error, string(x.rec.Failure)+": "+x.rec.Error)
	}
	x.span.End(trace.WithTimestamp(now))
}
