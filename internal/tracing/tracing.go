// Package tracing is how the stations of a start say what they are at: as spans of
// OpenTelemetry, below the one that is in their context. Where that has none nothing
// is made, so that only gateway and shim, where traces begin, need to know whether
// there is anybody to send spans to (package export).
//
// It has the API of OpenTelemetry alone. What collects and sends spans is heavy.
package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Scope names who makes the spans.
const Scope = "github.com/skep-dev/skep"

// Attributes of spans that no convention has.
const (
	Function   = attribute.Key("skep.function")
	Instance   = attribute.Key("skep.instance")
	Snapshot   = attribute.Key("skep.snapshot")
	Kind       = attribute.Key("skep.start") // boot, restore or warm
	Policy     = attribute.Key("skep.policy")
	Invocation = attribute.Key("skep.invocation") // whose record it is
	Queue      = attribute.Key("skep.queue_us")   // of what has waited, as in its record
)

// Propagator is how traces pass from one process to another: W3C's.
var Propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})

// Start begins a span below the context's.
func Start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	above := trace.SpanFromContext(ctx)
	if !above.SpanContext().IsValid() { // which costs next to nothing
		return ctx, above
	}
	return above.TracerProvider().Tracer(Scope).Start(ctx, name, trace.WithAttributes(attrs...))
}

// Part notes something that is over, and took that long; nothing if it took no time.
func Part(ctx context.Context, name string, began time.Time, took time.Duration) {
	above := trace.SpanFromContext(ctx)
	if took <= 0 || !above.SpanContext().IsValid() {
		return
	}
	_, s := above.TracerProvider().Tracer(Scope).Start(ctx, name, trace.WithTimestamp(began))
	s.End(trace.WithTimestamp(began.Add(took)))
}

// End ends a span, of what went wrong if err says so.
func End(s trace.Span, err error) {
	if err != nil {
		s.SetStatus(codes.Error, err.Error())
	}
	s.End()
}

// ID is the context's trace, in hexadecimal; "" without one.
func ID(ctx context.Context) string {
	if c := trace.SpanContextFromContext(ctx); c.HasTraceID() {
		return c.TraceID().String()
	}
	return ""
}
