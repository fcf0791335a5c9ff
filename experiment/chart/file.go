package chart

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"strings"
)

// File writes a chart with its title and legend as an SVG that needs nothing else, and
// follows its viewer from light to dark.
func File(w io.Writer, c Chart, width float64) error {
	const margin = 20.0
	inner := width - 2*margin
	legend, body := &svg{}, &svg{}
	top := margin + 24.0
	if keys := c.Legend(); len(keys) > 0 {
		top += DrawLegend(legend, keys, inner) + 6
	}
	height := top + c.Draw(body, inner) + margin
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="Helvetica,Arial,sans-serif" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(b, "<title>%s</title>\n<style>svg{%s}@media(prefers-color-scheme:dark){svg{%s}}</style>\n", html.EscapeString(c.About().Title), variables("#ffffff", func(c colour) uint32 { return c.light }), variables("#15181c", func(c colour) uint32 { return c.dark }))
	fmt.Fprintf(b, `<rect width="100%%" height="100%%" fill="var(--bg)"/>`+"\n")
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f" font-size="14" font-weight="600" fill="var(--text)">%s</text>`+"\n", margin, margin+12, html.EscapeString(c.About().Title))
	fmt.Fprintf(b, `<g transform="translate(%.0f %.0f)">%s</g>`+"\n", margin, margin+24, legend.b.String())
	fmt.Fprintf(b, `<g transform="translate(%.0f %.1f)">%s</g>`+"\n</svg>\n", margin, top, body.b.String())
	return b.Flush()
}

// colour is an ink's on a light page and on a dark one; the report's style sheet has the
// same.
type colour struct{ light, dark uint32 }

var colours = [...]colour{
	Text: {0x1c1e21, 0xe4e7ea}, Muted: {0x646b73, 0x98a1ab}, Grid: {0xe6e8eb, 0x2c3238}, Blue: {0x0072b2, 0x3d9be0}, Orange: {0xd55e00, 0xf08040},
	Green: {0x009e73, 0x2fb98f}, Sky: {0x56b4e9, 0x93d3f7}, Purple: {0xaa4499, 0xd07fc6}, Grey: {0x9aa3ad, 0x7c8793}, Yellow: {0xe0b400, 0xe8c53a},
	Paper: {0x1c1e21, 0xf4f6f8},
}

// variables are the CSS variables that an SVG's colours are.
func variables(page string, of func(colour) uint32) string {
	var b strings.Builder
	fmt.Fprintf(&b, "--bg:%s", page)
	for i, c := range colours {
		name := strings.TrimSuffix(strings.TrimPrefix(Ink(i).Var(), "var("), ")")
		fmt.Fprintf(&b, ";%s:#%06x", name, of(c))
	}
	return b.String()
}
