package shim

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing"
)

// steps are what a container's start was made of, one after the other: for the log,
// for its record, and as spans.
type steps struct {
	mu   sync.Mutex // guards what follows
	done []api.Step
	now  api.Step   // under way
	span trace.Span // of it; nil: none is
}

// next begins a step, and ends the one before. Its context is for what is done in it.
func (s *steps) next(ctx context.Context, name string) context.Context {
	s.end(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = api.Step{Name: name, Began: time.Now()}
	ctx, s.span = tracing.Start(ctx, name)
	return ctx
}

// end ends the last step; err is why it was the last.
func (s *steps) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.span == nil {
		return
	}
	s.now.Took = time.Since(s.now.Began)
	s.done = append(s.done, s.now)
	tracing.End(s.span, err)
	s.span = nil
}

// over notes a step that has been until now.
func (s *steps) over(ctx context.Context, name string, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	step := api.Step{Name: name, Began: began, Took: time.Since(began)}
	s.done = append(s.done, step)
	tracing.Part(ctx, name, began, step.Took)
}

func (s *steps) all() []api.Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// took is how long all steps of that name were.
func (s *steps) took(names ...string) (d time.Duration) {
	for _, step := range s.all() {
		for _, name := range names {
			if step.Name == name {
				d += step.Took
			}
		}
	}
	return d
}

// attrs are for the log.
func (s *steps) attrs() (list []any) {
	for _, step := range s.all() {
		list = append(list, slog.Duration(step.Name, step.Took))
	}
	return list
}

func phaseAttrs(p api.Phases) (list []any) {
	p.Each(func(name string, d time.Duration) {
		if d > 0 {
			list = append(list, slog.Duration(name, d))
		}
	})
	return list
}
