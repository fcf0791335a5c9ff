package chart

import (
	"fmt"
	"html"
	"strings"
)

// SVG draws a chart as an SVG element that is to stand in a page: its colours
// are the variables --text, --muted, --grid, --paper and --c1 to --c7 of the
// page, its type the page's.
func SVG(c Chart, width float64) string {
	s := &svg{}
	h := c.Draw(s, width)
	return fmt.Sprintf(`<svg viewBox="0 0 %.0f %.1f" width="%.0f" role="img" aria-label="%s" xmlns="http://www.w3.org/2000/svg">%s</svg>`,
		width, h, width, html.EscapeString(c.About().Title), s.b.String())
}

// Var is the CSS variable of an ink.
func (i Ink) Var() string {
	switch i {
	case Text:
		return "var(--text)"
	case Muted:
		return "var(--muted)"
	case Grid:
		return "var(--grid)"
	case Paper:
		return "var(--paper)"
	}
	return fmt.Sprintf("var(--c%d)", i-Grid)
}

type svg struct{ b strings.Builder }

func (s *svg) Rect(x, y, w, h float64, ink Ink, tip string) {
	fmt.Fprintf(&s.b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s">%s</rect>`, x, y, max(w, 0.5), h, ink.Var(), title(tip))
}

func (s *svg) Line(points []Point, width float64, ink Ink, dashed bool) {
	var at []string
	for _, p := range points {
		at = append(at, fmt.Sprintf("%.1f,%.1f", p.X, p.Y))
	}
	dash := ""
	if dashed {
		dash = ` stroke-dasharray="5 4"`
	}
	fmt.Fprintf(&s.b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%.1f" stroke-linejoin="round"%s/>`, strings.Join(at, " "), ink.Var(), width, dash)
}

func (s *svg) Dot(x, y, r float64, ink Ink, opacity float64, tip string) {
	fmt.Fprintf(&s.b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" opacity="%.2f">%s</circle>`, x, y, r, ink.Var(), opacity, title(tip))
}

func (s *svg) Diamond(x, y, r float64, ink Ink, tip string) {
	fmt.Fprintf(&s.b, `<path d="M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz" fill="var(--bg)" stroke="%s" stroke-width="1.7">%s</path>`,
		x, y-r, r, r, -r, r, -r, -r, ink.Var(), title(tip))
}

func (s *svg) Text(x, y float64, text string, size float64, a Anchor, ink Ink, bold bool) {
	weight := ""
	if bold {
		weight = ` font-weight="600"`
	}
	fmt.Fprintf(&s.b, `<text x="%.1f" y="%.1f" font-size="%.0f" text-anchor="%s" fill="%s"%s>%s</text>`,
		x, y, size, [...]string{"start", "middle", "end"}[a], ink.Var(), weight, html.EscapeString(text))
}

func title(tip string) string {
	if tip == "" {
		return ""
	}
	return "<title>" + html.EscapeString(tip) + "</title>"
}

// KeySVG draws the mark of a legend's entry.
func KeySVG(k Key) string {
	s := &svg{}
	DrawKey(s, k, 0, 6)
	return `<svg class="key" viewBox="0 0 16 12" width="16" height="12" aria-hidden="true">` + s.b.String() + `</svg>`
}
