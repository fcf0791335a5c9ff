package shim

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/internal/tracing/tracingtest"
	"github.com/skep-dev/skep/shim/journal"
)

// What containerd says with a call of its trace is the call's.
func TestTraceOfACall(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	md := ttrpc.MD{"traceparent": {"00-" + id + "-00f067aa0ba902b7-01"}}
	for name, ctx := range map[string]context.Context{id: ttrpc.WithMetadata(t.Context(), md), "": t.Context()} {
		_, err := (&tasks{}).UnaryServerInterceptor()(ctx, nil, nil, func(ctx context.Context, _ func(any) error) (any, error) {
			if got := tracing.ID(ctx); got != name {
				t.Errorf("the call is of trace %q, want %q", got, name)
			}
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// Without a trace of containerd's a container's start is one of its own: both calls are in
// it, and their steps, within its time.
func TestTraceOfAStart(t *testing.T) {
	spans := tracingtest.Record(t)
	r := &room{id: "c", spec: &specs.Spec{}, tracer: spans.Tracer(tracing.Scope)}
	called := time.Now().Add(-time.Second)
	ctx, create := r.traces(t.Context(), "create", trace.WithTimestamp(called))
	r.steps.over(ctx, "open", called)
	r.steps.next(ctx, "disk")
	step := r.steps.next(ctx, "guest")
	tracing.Part(step, "spawn", time.Now(), time.Millisecond)
	r.steps.end(nil)
	create.End()
	ctx, start := r.traces(t.Context(), "start")
	r.steps.next(ctx, "clone")
	why := errors.New("it does not answer")
	r.steps.end(why)
	start.End()
	r.tracedWhole(why)
	all := spans.Names()
	root := all["start container"]
	for _, name := range []string{"create", "create/open", "create/disk", "create/guest", "create/guest/spawn", "start", "start/clone"} {
		s := all["start container/"+name]
		if s == nil || s.SpanContext().TraceID() != root.SpanContext().TraceID() || s.StartTime().Before(root.StartTime()) {
			t.Errorf("%s is %v", name, s)
		}
	}
	if s := all["start container/start/clone"]; s.Status().Description != why.Error() {
		t.Errorf("what failed is %+v", s.Status())
	}
	var names []string
	for _, s := range r.steps.all() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"open", "disk", "guest", "clone"}) {
		t.Errorf("the record has steps %v", names)
	}
	// With one of containerd's there is none of its own.
	other := &room{id: "d", spec: &specs.Spec{}, tracer: spans.Tracer(tracing.Scope)}
	theirs, _ := spans.Tracer("containerd").Start(t.Context(), "Task.Create")
	_, call := other.traces(theirs, "create")
	call.End()
	if s := call.SpanContext(); s.TraceID() != trace.SpanContextFromContext(theirs).TraceID() || other.root != nil {
		t.Errorf("the call is of another trace than containerd's: %v, %v", s, other.root)
	}
}

// A record is written once, and its end after it, whichever comes first: that the guest has
// come to rest, or that it ends.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	ev := newEvents(t.Context(), nowhere{})
	defer ev.close()
	var writing sync.WaitGroup
	r := &room{id: "c", events: ev, log: slog.New(slog.DiscardHandler),
		spec:  &specs.Spec{Process: &specs.Process{Env: []string{"K_REVISION=hello-00001", "SECRET=planted"}}, Annotations: map[string]string{annotationName: "user-container"}},
		begun: beginning{id: "r1", at: time.Now(), journal: journal.Of(dir), writing: &writing}}
	r.recordedEnd(guest.ProcessExit{Code: 137, OOM: true}, time.Now())
	r.recorded(nil)
	writing.Wait()
	var got []journal.Entry
	if err := journal.Of(dir).Take(t.Context(), func(list []journal.Entry) error { got = list; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Start == nil || got[1].Exit == nil || got[1].ID != "r1" {
		t.Fatalf("written is %+v in %s", got, filepath.Join(dir, "records"))
	}
	if s := got[0].Start; s.ID != "r1" || s.Function != "hello-00001" || s.Container.ID != "c" || s.Container.Name != "user-container" {
		t.Errorf("its start is %+v", s)
	}
	if e := got[1].Exit; e.Code != 137 || !e.OutOfMemory {
		t.Errorf("its end is %+v", e)
	}
}

// The phases of a start add up to it.
func TestPhasesOfAStart(t *testing.T) {
	s := &steps{}
	for name, d := range map[string]time.Duration{"disk": 1, "network": 2, "guest": 30, "furnish": 4, "clone": 5, "answer": 6} {
		s.done = append(s.done, api.Step{Name: name, Took: d * time.Millisecond})
	}
	of := api.Phases{Spawn: 10 * time.Millisecond, Load: 9 * time.Millisecond, Clone: 8 * time.Millisecond}
	p := phasesOf(of, s, 100*time.Millisecond)
	sum := -p.Total
	p.Each(func(_ string, d time.Duration) { sum += d })
	if sum != p.Total || p.Slot != 2*time.Millisecond || p.Clone != 13*time.Millisecond || p.Init != 4*time.Millisecond || p.Process != 6*time.Millisecond || p.Queue != 56*time.Millisecond {
		t.Errorf("phases are %+v, of %v, want %v", p, sum, p.Total)
	}
}

func TestRevisionOf(t *testing.T) {
	pod := func(name string, env ...string) *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Env: env}, Annotations: map[string]string{annotationPod: name}}
	}
	for want, c := range map[string]struct {
		spec   *specs.Spec
		labels map[string]string
	}{
		"hello-00002":    {pod("hello-00002-deployment-6c8d9-x2x4z", "K_REVISION=hello-00002"), map[string]string{"pod-template-hash": "6c8d9"}},
		"web-7b9f8":      {pod("web-7b9f8-abcde"), map[string]string{"app": "web", "pod-template-hash": "7b9f8"}},
		"db-0":           {pod("db-0"), map[string]string{"app": "db"}},
		"alone":          {pod("alone"), nil},
		"a-container-id": {&specs.Spec{}, nil},
	} {
		if got := revisionOf("a-container-id", c.spec, c.labels); got != want {
			t.Errorf("a container of %q: %q, want %q", c.spec.Annotations[annotationPod], got, want)
		}
	}
}
