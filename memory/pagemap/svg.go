package pagemap

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// SVG writes the picture as one self-contained SVG, which follows its viewer
// from light to dark.
func (m *Map) SVG(w io.Writer) error {
	s := m.scene()
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" font-family="system-ui,sans-serif" role="img">`+"\n",
		s.width, s.height, s.width, s.height)
	fmt.Fprintf(b, "<title>%s</title>\n%s<rect class=\"p\" width=\"100%%\" height=\"100%%\"/>\n", escape(m.Title), style())
	s.svgGrid(b)
	for _, l := range s.lines {
		fmt.Fprintf(b, "<path class=\"l\" d=\"M%g %gl%g %g\"/>\n", l.x, l.y, l.dx, l.dy)
	}
	for _, q := range s.swatches {
		fmt.Fprintf(b, "<rect class=\"f%d\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\"/>\n", q.class, q.x, q.y, q.side, q.side)
	}
	for _, t := range s.texts {
		fmt.Fprintf(b, "<text class=\"t%d\" x=\"%g\" y=\"%g\" font-size=\"%g\"%s>%s</text>\n", t.ink, t.x, t.y, t.size, textStyle(t), escape(t.s))
	}
	b.WriteString("</svg>\n")
	return b.Flush()
}

// svgGrid draws each class as one path of strokes, a cell wide: the shortest
// that there is.
func (s *scene) svgGrid(b *bufio.Writer) {
	var paths [classes]strings.Builder
	s.grid.strips(func(c class, x, y, n int) { fmt.Fprintf(&paths[c], "M%d %dh%d", x, y, n) })
	fmt.Fprintf(b, "<g transform=\"translate(%g %g) scale(%d) translate(0 .5)\" fill=\"none\" shape-rendering=\"crispEdges\">\n", s.gridX, s.gridY, cell)
	for c := range classes {
		if paths[c].Len() > 0 {
			fmt.Fprintf(b, "<path class=\"c%d\" d=\"%s\"/>\n", c, paths[c].String())
		}
	}
	b.WriteString("</g>\n")
}

func style() string {
	var light, dark strings.Builder
	rule := func(b *strings.Builder, class, property string, c rgb) {
		fmt.Fprintf(b, "%s{%s:%s}", class, property, c)
	}
	rule(&light, ".p", "fill", paper)
	rule(&dark, ".p", "fill", darkPaper)
	for i, c := range inkColours {
		rule(&light, fmt.Sprintf(".t%d", i), "fill", c.light)
		rule(&dark, fmt.Sprintf(".t%d", i), "fill", c.dark)
	}
	rule(&light, ".l", "stroke", inkColours[muted].light)
	rule(&dark, ".l", "stroke", inkColours[muted].dark)
	for i, l := range looks {
		for b, c := range map[*strings.Builder]rgb{&light: l.colour, &dark: l.dark} {
			rule(b, fmt.Sprintf(".c%d", i), "stroke", c)
			rule(b, fmt.Sprintf(".f%d", i), "fill", c)
		}
	}
	return fmt.Sprintf("<style>%s@media(prefers-color-scheme:dark){%s}</style>\n", &light, &dark)
}

func textStyle(t text) string {
	out := ""
	if t.bold {
		out += ` font-weight="600"`
	}
	switch t.anchor {
	case middle:
		out += ` text-anchor="middle"`
	case end:
		out += ` text-anchor="end"`
	}
	return out
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
