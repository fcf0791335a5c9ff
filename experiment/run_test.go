package experiment

import (
	"context"
	"errors"
	"log/slog"
	"testing"
)

// quiet is progress that only counts.
type quiet struct{ done, again int }

func (q *quiet) Begin(Point)          {}
func (q *quiet) Done(Point, []Sample) { q.done++ }
func (q *quiet) Again(Point, error)   { q.again++ }

// Points that cannot be measured are tried twice and left; five end the run.
func TestRunGoesOn(t *testing.T) {
	store := open(t, t.TempDir())
	lab := NewLab(nil, Settings{}, slog.New(slog.DiscardHandler))
	var points []Point
	for run := range 8 {
		// No such function: it fails before the host is asked.
		points = append(points, Point{Experiment: "policies", Function: "absent", Variant: "reap", Run: run})
	}
	var q quiet
	err := Run(t.Context(), lab, store, points[:2], &q)
	if err == nil || q.again != 2 || q.done != 0 || store.Has(points[0]) {
		t.Errorf("two: %v, %+v", err, q)
	}
	q = quiet{}
	if err := Run(t.Context(), lab, store, points, &q); err == nil || q.again != maxFailed {
		t.Errorf("eight: %v, %+v", err, q)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, lab, store, points, &quiet{}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
