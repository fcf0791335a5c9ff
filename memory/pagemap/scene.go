package pagemap

import (
	"fmt"
	"strconv"
	"strings"
)

// rgb is 0xRRGGBB.
type rgb uint32

func (c rgb) String() string { return fmt.Sprintf("#%06x", uint32(c)) }

// ink is a colour of text and lines.
type ink uint8

const (
	strong ink = iota
	muted
	inks
)

var inkColours = [inks]struct{ light, dark rgb }{strong: {0x16191d, 0xf1f3f5}, muted: {0x5b6470, 0xa3acb8}}

const paper, darkPaper = rgb(0xffffff), rgb(0x14171b)

type anchor uint8

const (
	start anchor = iota
	middle
	end
)

// text is a line of it; y is its baseline.
type text struct {
	x, y   float64
	s      string
	size   float64
	bold   bool
	ink    ink
	anchor anchor
}

// swatch is a square of the legend.
type swatch struct {
	x, y, side float64
	class      class
}

// line is horizontal or vertical.
type line struct{ x, y, dx, dy float64 }

// scene is the picture, before it is SVG or PNG. Lengths are in pixels of an
// SVG at its natural size.
type scene struct {
	width, height float64
	texts         []text
	swatches      []swatch
	lines         []line
	grid          grid
	gridX, gridY  float64
}

// cell is the side of a cell in pixels.
const cell = 3

const (
	left       = 118 // of the grid
	gap        = 44  // between grid and legend
	sideWidth  = 352
	margin     = 28
	tick       = 6
	lineHeight = 21
)

func (m *Map) scene() *scene {
	pages, counts := m.classify()
	g := newGrid(pages)
	s := &scene{grid: g, gridX: left, width: left + columns*cell + gap + sideWidth + margin}
	y := float64(margin + 24)
	s.texts = append(s.texts, text{x: margin, y: y, s: m.Title, size: 26, bold: true})
	for _, l := range m.Subtitle {
		y += lineHeight + 2
		s.texts = append(s.texts, text{x: margin, y: y, s: l, size: 15, ink: muted})
	}
	s.gridY = y + 68
	s.axes()
	low := s.gridY + float64(g.rows())*cell
	s.height = max(low, s.side(m, counts)) + margin
	return s
}

// axes labels the grid with addresses.
func (s *scene) axes() {
	g, x, y := s.grid, s.gridX, s.gridY
	s.texts = append(s.texts, text{x: margin, y: y - 34, s: s.addresses(), size: 13, ink: muted})
	for col := 0; col <= columns; col += columns / 4 {
		at := x + float64(col)*cell
		s.lines = append(s.lines, line{at, y - tick - 2, 0, tick})
		s.texts = append(s.texts, text{x: at, y: y - tick - 8, s: "+" + binary(g.rowBytes()*int64(col)/columns), size: 13, ink: muted, anchor: middle})
	}
	step := 1
	for g.rows() > 8*step {
		step *= 2
	}
	for row := 0; row <= g.rows(); row += step {
		at := y + float64(row)*cell
		address := int64(row) * g.rowBytes()
		s.lines = append(s.lines, line{x - tick - 2, at, tick, 0})
		s.texts = append(s.texts, text{x: x - tick - 7, y: at + 4, s: fmt.Sprintf("0x%08x", address), size: 13, ink: muted, anchor: end})
	}
}

// lowMemory is how much guest memory lies from address 0 on under every VMM:
// what is above may lie behind the hole for devices.
const lowMemory = 2 << 30

func (s *scene) addresses() string {
	if s.grid.rowBytes()*int64(s.grid.rows()) > lowMemory {
		return "offset in guest memory; a guest-physical address up to " + binary(lowMemory)
	}
	return "guest-physical address"
}

// side draws legend and notes, and returns where they end.
func (s *scene) side(m *Map, counts [classes]int64) float64 {
	x, y := s.gridX+columns*cell+gap, s.gridY+11
	right := x + sideWidth
	s.texts = append(s.texts,
		text{x: right - 82, y: y, s: "pages", size: 13, ink: muted, anchor: end},
		text{x: right, y: y, s: "MiB", size: 13, ink: muted, anchor: end})
	for _, c := range legend {
		if c == touched && counts[c] == 0 {
			continue
		}
		y += 31
		n, mib, in := thousands(counts[c]), fmt.Sprintf("%.2f", float64(counts[c])*pageSize/(1<<20)), strong
		if !m.known(c) {
			n, mib, in = "not known", "–", muted
		}
		s.swatches = append(s.swatches, swatch{x, y - 13, 16, c})
		s.texts = append(s.texts,
			text{x: x + 28, y: y, s: looks[c].name, size: 16, bold: true},
			text{x: right - 82, y: y, s: n, size: 16, ink: in, anchor: end},
			text{x: right, y: y, s: mib, size: 16, ink: in, anchor: end},
			text{x: x + 28, y: y + 18, s: looks[c].means, size: 13, ink: muted})
		y += 18
	}
	y += 18
	for _, l := range append([]string{s.scale()}, m.Notes...) {
		y += lineHeight
		s.texts = append(s.texts, text{x: x, y: y, s: l, size: 14, ink: muted})
	}
	return y
}

// scale says what a cell and a row are.
func (s *scene) scale() string {
	if s.grid.per == 1 {
		return "A cell is a page of 4 KiB, a row " + binary(s.grid.rowBytes()) + "."
	}
	return fmt.Sprintf("A cell is %d pages, the rarest kind shown; a row %s.", s.grid.per, binary(s.grid.rowBytes()))
}

// binary writes a round number of bytes.
func binary(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	var b strings.Builder
	for i, d := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}
