package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing/tracingtest"
)

// What an instance is started for has its start among its spans, whose parts are the
// phases of the record. Who gets the instance that was started for another has a link
// to its start.
func TestTrace(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.MaxInstances = 1 }))
		spans := tracingtest.Record(t)
		request := func(name string) (context.Context, trace.Span) {
			return spans.Tracer("test").Start(t.Context(), name)
		}
		ctx, first := request("first")
		ended := make(chan Lease)
		go func() {
			l, err := n.Acquire(ctx, "hello", AcquireOptions{})
			must(t, err)
			first.End()
			ended <- l
		}()
		synctest.Wait()
		ctx, second := request("second")
		go func() {
			time.Sleep(50 * time.Millisecond)
			l, err := n.Acquire(ctx, "hello", AcquireOptions{})
			must(t, err)
			second.End()
			ended <- l
		}()
		l := <-ended
		phases := l.Phases()
		l.Release(api.Invocation{Status: 200})
		(<-ended).Release(api.Invocation{Status: 200})

		all := spans.Names()
		const start = "first/acquire/start instance"
		begun := all[start]
		if begun == nil || all["second/acquire/start instance"] != nil {
			t.Fatalf("spans are %v", all)
		}
		phases.Each(func(name string, d time.Duration) {
			at := start + "/restore microVM/" + name
			switch name {
			case "queue", "connect", "process", "stream", "total":
				return
			case "slot":
				at = start + "/" + name
			}
			if s := all[at]; d > 0 && (s == nil || tracingtest.Took(s) != d) {
				t.Errorf("%s is %v, its phase %v", at, s, d)
			} else if d == 0 && s != nil {
				t.Errorf("there is %s, and no such phase", at)
			}
		})
		if wait := all["first/acquire"]; tracingtest.Took(wait) != phases.Queue+sum(phases) {
			t.Errorf("it has waited for %v, by its phases %v", tracingtest.Took(wait), phases)
		}
		if links := all["first/acquire"].Links(); len(links) != 1 || links[0].SpanContext.SpanID() != begun.SpanContext().SpanID() {
			t.Errorf("links of who got the instance are %v", links)
		}
	})
}
