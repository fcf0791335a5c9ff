// Package chart draws the few kinds of figures that experiments need: bars with
// intervals, single samples and the paper's values beside them, and lines of the
// same. A chart is drawn on a pen of which there are two: SVG, whose colours
// follow the page's light or dark scheme, and PNG. Charts are laid out for the
// width that they are given, so that a narrow page has one made for it.
package chart

import (
	"math"
	"strconv"
)

// Info names a chart.
type Info struct {
	Name    string // of its file
	Title   string
	Caption string
}

// Chart is something that can be drawn.
type Chart interface {
	About() Info
	Legend() []Key
	// Draw draws for a width and returns the height that it took. The legend is
	// not drawn: see DrawLegend.
	Draw(p Pen, width float64) (height float64)
}

// Ink is a colour by its role.
type Ink int

// The inks. Those of series are safe for colour-blind readers (after Okabe and
// Ito), and told apart in grey by being light and dark in turn.
const (
	Text Ink = iota
	Muted
	Grid
	Blue
	Orange
	Green
	Sky
	Purple
	Grey
	Yellow
	Paper // the paper's values
)

// Key is an entry of a legend.
type Key struct {
	Name string
	Ink  Ink
	Mark Mark
}

// Mark is how a key looks.
type Mark int

// The marks.
const (
	Box     Mark = iota // a bar
	Stroke              // a line
	Dashed              // a dashed line
	Diamond             // the paper's value, or a series' where it is one of marks
	Whisker             // an interval
	Dots                // single samples
)

// Anchor is the end of a text that its position is about.
type Anchor int

// The anchors.
const (
	Start Anchor = iota
	Middle
	End
)

// Pen draws in a space whose origin is at the top left; one unit is a pixel.
type Pen interface {
	Rect(x, y, w, h float64, ink Ink, tip string)
	Line(points []Point, width float64, ink Ink, dashed bool)
	Dot(x, y, r float64, ink Ink, opacity float64, tip string)
	Diamond(x, y, r float64, ink Ink, tip string)
	Text(x, y float64, s string, size float64, a Anchor, ink Ink, bold bool)
}

// Point is a place on the pen's space.
type Point struct{ X, Y float64 }

// PolicyInk is the colour of a memory policy, the same in every figure.
func PolicyInk(policy string) Ink {
	switch policy {
	case "mmap":
		return Grey
	case "reap":
		return Blue
	case "stream":
		return Orange
	case "resident":
		return Green
	case "parallel":
		return Purple
	case "wsfile":
		return Sky
	}
	return Yellow
}

// scale maps values to places.
type scale struct {
	lo, hi   float64
	from, to float64
	log      bool
}

func (s scale) at(v float64) float64 {
	if s.log {
		return s.from + (s.to-s.from)*(math.Log(max(v, s.lo))-math.Log(s.lo))/(math.Log(s.hi)-math.Log(s.lo))
	}
	return s.from + (s.to-s.from)*(v-s.lo)/(s.hi-s.lo)
}

// newScale covers values from nought, or on a logarithmic scale from the least,
// to a round number.
func newScale(lo, hi float64, log bool, from, to float64, ticks int) (scale, []float64) {
	if hi <= 0 || math.IsNaN(hi) {
		hi = 1
	}
	if log {
		if lo <= 0 || math.IsNaN(lo) {
			lo = hi / 1000
		}
		s := scale{lo: lo * 0.85, hi: hi * 1.1, from: from, to: to, log: true}
		return s, logTicks(s.lo, s.hi, ticks)
	}
	step := niceStep(hi / float64(ticks))
	top := math.Ceil(hi/step-1e-9) * step
	var at []float64
	for v := 0.0; v <= top+step/2; v += step {
		at = append(at, v)
	}
	return scale{lo: 0, hi: top, from: from, to: to}, at
}

func niceStep(raw float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*base >= raw {
			return m * base
		}
	}
	return 10 * base
}

func logTicks(lo, hi float64, most int) []float64 {
	for _, marks := range [][]float64{{1, 2, 5}, {1, 3}, {1}} {
		var at []float64
		for e := math.Floor(math.Log10(lo)); e <= math.Ceil(math.Log10(hi)); e++ {
			for _, m := range marks {
				if v := m * math.Pow(10, e); v >= lo && v <= hi {
					at = append(at, v)
				}
			}
		}
		if len(at) <= most+2 || len(marks) == 1 {
			return at
		}
	}
	return nil
}

// Number writes a value with three digits that count.
func Number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a >= 1000:
		s := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "\u202f" + s[i:]
		}
		return s
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return trimZero(strconv.FormatFloat(v, 'f', 1, 64))
	case a == 0:
		return "0"
	}
	return trimZero(strconv.FormatFloat(v, 'f', 2, 64))
}

func trimZero(s string) string {
	for s[len(s)-1] == '0' {
		s = s[:len(s)-1]
	}
	if s[len(s)-1] == '.' {
		s = s[:len(s)-1]
	}
	return s
}
