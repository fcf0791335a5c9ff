package tree

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Ours says that skep has made the span.
func (s *Span) Ours() bool {
	return s.Scope == "" || strings.HasPrefix(s.Scope, "github.com/skep-dev/")
}

// Label is the span's name, with its program's where that is another's.
func (s *Span) Label() string {
	if s.Ours() || s.Service == "" {
		return s.Name
	}
	return s.Service + ": " + s.Name
}

// Text writes the trace for a terminal of so many columns.
func (t *Trace) Text(w io.Writer, columns int) error {
	whole := t.Ended.Sub(t.Began)
	labels := 0
	t.Each(func(s *Span, depth int) { labels = max(labels, 2*depth+utf8.RuneCountInString(s.Label())) })
	labels = min(labels, columns/2)
	bar := max(10, columns-labels-22)
	if _, err := fmt.Fprintf(w, "trace %s  %s  %s\n%-*s %10s %9s\n", t.ID, t.Began.UTC().Format(time.RFC3339Nano), t.Name(), labels, "SPAN", "AT ms", "TOOK ms"); err != nil {
		return err
	}
	var failed error
	t.Each(func(s *Span, depth int) {
		if failed != nil {
			return
		}
		at := s.Began.Sub(t.Began)
		from := int(float64(bar) * float64(at) / float64(max(whole, 1)))
		from = min(from, bar-1)
		long := max(1, min(int(float64(bar)*float64(s.Took)/float64(max(whole, 1))+0.5), bar-from))
		line := fmt.Sprintf("%s %10.3f %9.3f %s%s", fit(strings.Repeat("  ", depth)+s.Label(), labels), millis(at), millis(s.Took), strings.Repeat(" ", from), strings.Repeat("█", long))
		if s.Error != "" {
			line += "\n" + strings.Repeat("  ", depth) + "  ! " + s.Error
		}
		if s.Name == "memory" {
			line += "\n" + strings.Repeat("  ", depth+1) + s.figures()
		}
		_, failed = fmt.Fprintln(w, line)
	})
	return failed
}

// figures are those of what memory has served.
func (s *Span) figures() string {
	get := func(key string) string { return cmp.Or(s.Attrs["skep.memory."+key], "?") }
	return fmt.Sprintf("%s: %s faults, %s pages ahead, %s bytes read", s.Attrs["skep.policy"], get("faults"), get("prefetched_pages"), get("bytes_read"))
}

// fit makes a text so many columns wide.
func fit(s string, columns int) string {
	r := []rune(s)
	if len(r) > columns {
		return string(r[:columns-1]) + "…"
	}
	return s + strings.Repeat(" ", columns-len(r))
}
