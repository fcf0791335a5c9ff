package tracingtest

import (
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/skep-dev/skep/internal/tracing/tree"
)

// Spans are those of one process.
type Spans struct {
	*sdk.TracerProvider
	recorder *tracetest.SpanRecorder
}

// Record makes spans that are kept.
func Record(t testing.TB) *Spans {
	r := tracetest.NewSpanRecorder()
	p := sdk.NewTracerProvider(sdk.WithSpanProcessor(r))
	t.Cleanup(func() { _ = p.Shutdown(t.Context()) })
	return &Spans{p, r}
}

// Names are those of all spans that have ended, each below its parent's: "a", "a/b". Of
// spans that have the same name the last counts.
func (s *Spans) Names() map[string]sdk.ReadOnlySpan {
	ended := s.recorder.Ended()
	byID := map[string]sdk.ReadOnlySpan{}
	for _, span := range ended {
		byID[span.SpanContext().SpanID().String()] = span
	}
	all := map[string]sdk.ReadOnlySpan{}
	for _, span := range ended {
		name := span.Name()
		for p := span; ; name = p.Name() + "/" + name {
			var ok bool
			if p, ok = byID[p.Parent().SpanID().String()]; !ok {
				break
			}
		}
		all[name] = span
	}
	return all
}

// Took is how long a span was.
func Took(s sdk.ReadOnlySpan) time.Duration { return s.EndTime().Sub(s.StartTime()) }

// Paths are the spans of a trace by their names, each below its parent's: "a", "a/b".
func Paths(t *tree.Trace) map[string]*tree.Span {
	all := map[string]*tree.Span{}
	var walk func(list []*tree.Span, above string)
	walk = func(list []*tree.Span, above string) {
		for _, s := range list {
			all[above+s.Name] = s
			walk(s.Children, above+s.Name+"/")
		}
	}
	walk(t.Roots, "")
	return all
}

// Within fails the test for each span that is not within its parent's time, but for those
// that may go on.
func Within(t testing.TB, trace *tree.Trace, mayGoOn ...string) {
	t.Helper()
	trace.Each(func(s *tree.Span, _ int) {
		for _, c := range s.Children {
			goesOn := false
			for _, name := range mayGoOn {
				goesOn = goesOn || c.Name == name
			}
			if c.Began.Before(s.Began) || c.Ended().After(s.Ended()) && !goesOn {
				t.Errorf("span %s, %v to %v, is not within %s, %v to %v", c.Name, c.Began, c.Ended(), s.Name, s.Began, s.Ended())
			}
		}
	})
}
