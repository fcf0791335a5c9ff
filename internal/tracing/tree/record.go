package tree

import (
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
)

// OfRecord makes a trace of a record: of its phases, which follow one another, or of the
// steps of a container's start, whose times it has.
func OfRecord(rec api.Invocation) *Trace {
	id := rec.Trace
	if id == "" {
		id = rec.ID
	}
	root := &Span{ID: rec.ID, Name: rec.Function, Began: rec.Time, Took: rec.Phases.Total, Error: rec.Error, Attrs: map[string]string{
		"skep.invocation": rec.ID, "skep.start": string(rec.Start), "skep.instance": rec.Instance, "skep.snapshot": rec.Snapshot}}
	t := &Trace{ID: id, Roots: []*Span{root}, Count: 1}
	add := func(below *Span, name string, began time.Time, took time.Duration) *Span {
		s := &Span{ID: fmt.Sprint(rec.ID, ".", t.Count), Parent: below.ID, Name: name, Began: began, Took: took}
		t.Count++
		below.Children = append(below.Children, s)
		return s
	}
	if c := rec.Container; c != nil {
		for _, step := range c.Steps {
			below := add(root, step.Name, step.Began, step.Took)
			if step.Name == "guest" {
				addPhases(rec, []string{"spawn", "load", "install", "resume", "boot"}, step.Began, func(name string, at time.Time, d time.Duration) { add(below, name, at, d) })
			}
		}
	} else {
		addPhases(rec, api.PhaseNames[:len(api.PhaseNames)-1], rec.Time, func(name string, at time.Time, d time.Duration) { add(root, name, at, d) })
	}
	t.Began, t.Ended = root.Began, root.Ended()
	return t
}

func addPhases(rec api.Invocation, names []string, at time.Time, add func(string, time.Time, time.Duration)) {
	p := rec.Phases
	p.Each(func(name string, d time.Duration) {
		for _, n := range names {
			if n == name && d > 0 {
				add(name, at, d)
				at = at.Add(d)
			}
		}
	})
}
