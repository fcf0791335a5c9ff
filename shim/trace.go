package shim

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/internal/tracing"
)

// containerd says with a call, from 2.0 on and where its own tracing is on, of which
// trace the call is. What a shim does for it is of that trace then, and so of whoever
// called containerd: a kubelet, which says so in the same way. Where it says nothing a
// container's start is a trace of its own.

// UnaryServerInterceptor has the calls' contexts hold the trace.
func (t *tasks) UnaryServerInterceptor() ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		if md, ok := ttrpc.GetMetadata(ctx); ok {
			ctx = tracing.Propagator.Extract(ctx, carrier(md))
		}
		return method(ctx, unmarshal)
	}
}

// carrier is what comes with a call, as headers do with a request.
type carrier ttrpc.MD

var _ propagation.TextMapCarrier = carrier{}

func (c carrier) Get(key string) string {
	if v, ok := ttrpc.MD(c).Get(key); ok {
		return v[0]
	}
	return ""
}

func (c carrier) Set(key, value string) { ttrpc.MD(c).Set(key, value) }

func (c carrier) Keys() []string { return slices.Collect(maps.Keys(c)) }

// traces begins the span of a call of containerd's that is a part of the container's
// start.
func (r *room) traces(ctx context.Context, call string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	o = append(o, trace.WithAttributes(r.attributes()...))
	if !trace.SpanContextFromContext(ctx).IsValid() {
		if r.root == nil {
			_, r.root = r.tracer.Start(ctx, "start container", o...)
		}
		ctx = trace.ContextWithSpan(ctx, r.root)
	}
	return r.tracer.Start(ctx, call, append(o, trace.WithSpanKind(trace.SpanKindServer))...)
}

// tracedWhole ends the container's own trace, if it has one: its start is over.
func (r *room) tracedWhole(err error) {
	if r.root != nil {
		tracing.End(r.root, err)
	}
}

// tracedBegin has the container's own process begin, of which its start ends.
func (r *room) tracedBegin(ctx context.Context) error {
	ctx, call := r.traces(ctx, "start")
	err := r.begin(ctx)
	r.steps.end(err)
	tracing.End(call, err)
	r.tracedWhole(err)
	if err == nil {
		r.startTook.CompareAndSwap(0, int64(time.Since(r.begun.at)))
	}
	return err
}

func (r *room) attributes() []attribute.KeyValue {
	list := []attribute.KeyValue{attribute.String("container.id", r.id)}
	a := r.spec.Annotations
	for key, name := range map[string]attribute.Key{annotationNamespace: "k8s.namespace.name", annotationPod: "k8s.pod.name", annotationName: "k8s.container.name"} {
		if v := a[key]; v != "" {
			list = append(list, name.String(v))
		}
	}
	return list
}
