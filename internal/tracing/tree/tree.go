// Package tree is traces to look at: read from what a collector has written, or made of
// the record that an invocation or a container's start has left, and shown as a
// waterfall. `skep trace` is its caller.
package tree

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/skep-dev/skep/internal/tracing"
)

// Span is one span.
type Span struct {
	ID       string            `json:"id"`
	Parent   string            `json:"parent,omitempty"`
	Name     string            `json:"name"`
	Service  string            `json:"service,omitempty"`
	Scope    string            `json:"scope,omitempty"`
	Began    time.Time         `json:"began"`
	Took     time.Duration     `json:"took_ns"`
	Error    string            `json:"error,omitempty"`
	Attrs    map[string]string `json:"attributes,omitempty"`
	Children []*Span           `json:"children,omitempty"` // in the order of their beginnings
}

// Trace is the spans of one trace.
type Trace struct {
	ID    string  `json:"trace"`
	Roots []*Span `json:"spans"` // those whose parents are not there
	Began time.Time
	Ended time.Time
	Count int `json:"count"`
}

// maxLine bounds what is read at once: a collector's batch.
const maxLine = 64 << 20

// Read reads a file of OTLP in JSON, a batch a line, as a collector's file exporter
// writes it. Traces come in the order of their beginnings.
func Read(r io.Reader) ([]*Trace, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	spans := map[string]map[string]*Span{} // by trace and id
	read := ptrace.JSONUnmarshaler{}
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue
		}
		batch, err := read.UnmarshalTraces(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d is no OTLP in JSON: %w", n, err)
		}
		each(batch, func(trace string, s *Span) {
			if spans[trace] == nil {
				spans[trace] = map[string]*Span{}
			}
			spans[trace][s.ID] = s
		})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	var all []*Trace
	for id, of := range spans {
		all = append(all, grow(id, of))
	}
	slices.SortFunc(all, func(a, b *Trace) int { return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func each(batch ptrace.Traces, f func(trace string, s *Span)) {
	for _, of := range batch.ResourceSpans().All() {
		service := ""
		if v, ok := of.Resource().Attributes().Get("service.name"); ok {
			service = v.AsString()
		}
		for _, scope := range of.ScopeSpans().All() {
			for _, span := range scope.Spans().All() {
				s := &Span{ID: span.SpanID().String(), Parent: span.ParentSpanID().String(), Name: span.Name(), Service: service, Scope: scope.Scope().Name(),
					Began: span.StartTimestamp().AsTime(), Took: span.EndTimestamp().AsTime().Sub(span.StartTimestamp().AsTime()), Attrs: map[string]string{}}
				if span.Status().Code() == ptrace.StatusCodeError {
					s.Error = cmp.Or(span.Status().Message(), "an error")
				}
				for k, v := range span.Attributes().All() {
					s.Attrs[k] = v.AsString()
				}
				f(span.TraceID().String(), s)
			}
		}
	}
}

// grow makes a tree of a trace's spans.
func grow(id string, spans map[string]*Span) *Trace {
	t := &Trace{ID: id, Count: len(spans)}
	for _, s := range spans {
		if parent := spans[s.Parent]; parent != nil && parent != s {
			parent.Children = append(parent.Children, s)
		} else {
			t.Roots = append(t.Roots, s)
		}
		if t.Began.IsZero() || s.Began.Before(t.Began) {
			t.Began = s.Began
		}
		if end := s.Ended(); end.After(t.Ended) {
			t.Ended = end
		}
	}
	order(t.Roots)
	for _, s := range spans {
		order(s.Children)
	}
	return t
}

// order sorts spans by their beginnings; of two that begin together the longer is first.
func order(list []*Span) {
	slices.SortFunc(list, func(a, b *Span) int {
		return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(b.Took, a.Took), cmp.Compare(a.ID, b.ID))
	})
}

// Ended is when the span had ended.
func (s *Span) Ended() time.Time { return s.Began.Add(s.Took) }

// Each calls f for every span, parents before their children, with how many are above it.
func (t *Trace) Each(f func(s *Span, depth int)) {
	var walk func(list []*Span, depth int)
	walk = func(list []*Span, depth int) {
		for _, s := range list {
			f(s, depth)
			walk(s.Children, depth+1)
		}
	}
	walk(t.Roots, 0)
}

// Name is what the trace is of: its first span.
func (t *Trace) Name() string {
	if len(t.Roots) == 0 {
		return ""
	}
	return t.Roots[0].Name
}

// ErrNone is wrapped when there is no trace of an id.
var ErrNone = errors.New("there is no such trace")

// Find returns the trace with this id, or whose spans are of the invocation with it.
func Find(all []*Trace, id string) (*Trace, error) {
	for _, t := range all {
		found := t.ID == id
		t.Each(func(s *Span, _ int) { found = found || s.Attrs[string(tracing.Invocation)] == id })
		if found {
			return t, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", id, ErrNone)
}
