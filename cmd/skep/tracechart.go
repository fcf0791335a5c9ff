package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/internal/tracing/tree"
)

// spanInks are those of spans, by what is at work.
var spanInks = map[string]chart.Ink{
	"acquire": chart.Grey, "disk": chart.Grey, "snapshot lookup": chart.Grey, "slot": chart.Sky, "network": chart.Sky,
	"start instance": chart.Blue, "restore microVM": chart.Blue, "boot microVM": chart.Blue, "guest": chart.Blue, "make ready snapshot": chart.Purple, "make base snapshot": chart.Purple,
	"spawn": chart.Blue, "load": chart.Blue, "install": chart.Blue, "resume": chart.Blue, "boot": chart.Green, "clone": chart.Green, "init": chart.Green,
	"furnish": chart.Green, "process": chart.Green, "ready": chart.Green, "answer": chart.Green, "connect": chart.Green, "request": chart.Green, "stream": chart.Green,
	"memory": chart.Orange,
}

var spanKeys = []chart.Key{{Name: "waiting, looking up", Ink: chart.Grey}, {Name: "network", Ink: chart.Sky}, {Name: "microVM", Ink: chart.Blue},
	{Name: "guest at work", Ink: chart.Green}, {Name: "memory served", Ink: chart.Orange}, {Name: "snapshot made", Ink: chart.Purple}, {Name: "others' spans", Ink: chart.Yellow}}

// spanInk is the colour of a span: those of other programs have one of their own.
func spanInk(s *tree.Span) chart.Ink {
	if !s.Ours() {
		return chart.Yellow
	}
	if ink, ok := spanInks[s.Name]; ok {
		return ink
	}
	return chart.Grey
}

// traceChart draws a trace.
func traceChart(t *tree.Trace) *chart.Waterfall {
	const ms = float64(time.Millisecond)
	c := &chart.Waterfall{Info: chart.Info{Name: t.ID, Title: t.Name() + " · " + t.Began.UTC().Format("2006-01-02 15:04:05") + " · trace " + t.ID}, Unit: "ms", Keys: spanKeys}
	t.Each(func(s *tree.Span, depth int) {
		from := float64(s.Began.Sub(t.Began)) / ms
		c.Rows = append(c.Rows, chart.Row{Label: s.Label(), Depth: depth, From: from, To: from + float64(s.Took)/ms, Ink: spanInk(s), Tip: spanTip(s), Failed: s.Error != ""})
	})
	return c
}

// spanTip is all that a span says.
func spanTip(s *tree.Span) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", s.Label(), s.Took)
	for _, k := range slices.Sorted(maps.Keys(s.Attrs)) {
		fmt.Fprintf(&b, "\n%s = %s", k, s.Attrs[k])
	}
	if s.Error != "" {
		fmt.Fprintf(&b, "\n%s", s.Error)
	}
	return b.String()
}
