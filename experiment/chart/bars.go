package chart

import (
	"math"

	"github.com/skep-dev/skep/experiment/stat"
)

// Bars is horizontal bars in groups, from nought; on a logarithmic scale, dots.
type Bars struct {
	Info
	Unit   string
	Log    bool
	Keys   []Key
	Groups []Group
	Mark   float64 // a value that a line is drawn at; 0: none
}

// Group is bars that belong together.
type Group struct {
	Label string
	Bars  []Bar
}

// Bar is one bar, of one part or several in a row.
type Bar struct {
	Label   string
	Parts   []Part
	Summary stat.Summary // interval of the whole
	Samples []float64    // of the whole, all of them
	Paper   float64      // the paper's value; 0: none
}

// Part is a part of a bar.
type Part struct {
	Name  string
	Value float64
	Ink   Ink
}

// NewBar makes a bar of one part from samples.
func NewBar(label string, ink Ink, samples []float64, paper float64) Bar {
	s := stat.Summarize(samples)
	return Bar{Label: label, Parts: []Part{{label, s.Median, ink}}, Summary: s, Samples: samples, Paper: paper}
}

// Measures of the layout.
const (
	small     = 11.0
	normal    = 12.0
	thickness = 13.0
	rowHeight = 19.0
	gap       = 9.0
	axis      = 26.0
)

// About implements Chart.
func (b *Bars) About() Info { return b.Info }

// Legend implements Chart: the keys that something is drawn in, and what else
// there is to see.
func (b *Bars) Legend() []Key {
	var paper, dots, sure bool
	inks := map[Ink]bool{}
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			paper = paper || bar.Paper > 0
			dots = dots || len(bar.Samples) > 1
			sure = sure || bar.Summary.N > 1 && !bar.Summary.Weak
			for _, part := range bar.Parts {
				inks[part.Ink] = inks[part.Ink] || part.Value > 0
			}
		}
	}
	var keys []Key
	for _, k := range b.Keys {
		if inks[k.Ink] {
			keys = append(keys, k)
		}
	}
	if dots {
		keys = append(keys, Key{"each sample", Text, Dots}, whiskerKey(sure))
	}
	if paper {
		keys = append(keys, Key{"paper", Paper, Diamond})
	}
	return keys
}

// whiskerKey says what the intervals are: few samples have only their range.
func whiskerKey(sure bool) Key {
	if sure {
		return Key{"95% interval of the median", Text, Whisker}
	}
	return Key{"range of the samples", Text, Whisker}
}

// Draw implements Chart.
func (b *Bars) Draw(p Pen, width float64) float64 {
	nested := b.nested()
	labels := 0.0
	for _, g := range b.Groups {
		if !nested {
			labels = max(labels, textWidth(g.Label, normal))
		}
		for _, bar := range g.Bars {
			if nested {
				labels = max(labels, textWidth(bar.Label, small))
			}
		}
	}
	left := min(labels*1.2+10, width*0.42) // type on a page may be wider than Liberation
	right := width - 66
	lo, hi := b.extent()
	ticks := int(max((right-left)/90, 2))
	s, at := newScale(lo, hi, b.Log, left, right, ticks)
	height := b.height(nested)
	b.axis(p, s, at, height, width)
	y := 4.0
	for _, g := range b.Groups {
		if nested {
			p.Text(0, y+12, g.Label, normal, Start, Text, true)
			y += 19
		} else {
			p.Text(left-8, y+float64(len(g.Bars))*rowHeight/2+3.5, g.Label, normal, End, Text, false)
		}
		for _, bar := range g.Bars {
			if nested {
				p.Text(left-8, y+rowHeight/2+3.5, bar.Label, small, End, Muted, false)
			}
			b.bar(p, s, bar, y+rowHeight/2, width)
			y += rowHeight
		}
		y += gap
	}
	return height + axis
}

// nested says that groups have a line of their own above their bars.
func (b *Bars) nested() bool {
	for _, g := range b.Groups {
		if len(g.Bars) > 1 {
			return true
		}
	}
	return false
}

func (b *Bars) height(nested bool) float64 {
	y := 4.0
	for _, g := range b.Groups {
		y += float64(len(g.Bars))*rowHeight + gap
		if nested {
			y += 19
		}
	}
	return y
}

func (b *Bars) extent() (lo, hi float64) {
	lo = math.Inf(1)
	take := func(v float64) {
		if v > 0 && !math.IsNaN(v) {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	take(b.Mark)
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			sum := 0.0
			for _, part := range bar.Parts {
				sum += part.Value
			}
			take(sum)
			take(bar.Paper)
			take(bar.Summary.Hi)
			for _, v := range bar.Samples {
				take(v)
			}
		}
	}
	return lo, hi
}

func (b *Bars) axis(p Pen, s scale, at []float64, height, width float64) {
	for _, v := range at {
		x := s.at(v)
		p.Line([]Point{{x, 0}, {x, height}}, 1, Grid, false)
		p.Text(x, height+14, Number(v), small, Middle, Muted, false)
	}
	p.Text(width, height+14, b.Unit, small, End, Muted, false)
	if b.Mark > 0 {
		x := s.at(b.Mark)
		p.Line([]Point{{x, 0}, {x, height}}, 1, Muted, true)
	}
}

func (b *Bars) bar(p Pen, s scale, bar Bar, y, width float64) {
	sum := 0.0
	for _, part := range bar.Parts {
		if part.Value > 0 && !b.Log {
			x := s.at(sum)
			p.Rect(x, y-thickness/2, s.at(sum+part.Value)-x, thickness, part.Ink, part.Name+": "+Number(part.Value)+" "+b.Unit)
		}
		sum += part.Value
	}
	for _, v := range bar.Samples {
		if len(bar.Samples) > 1 && (v > 0 || !b.Log) {
			p.Dot(s.at(v), y+thickness/2-0.5, 1.9, Text, 0.55, Number(v)+" "+b.Unit) // below the interval, not under it
		}
	}
	if m := bar.Summary; m.N > 1 && m.Hi > m.Lo {
		whisker(p, s.at(m.Lo), s.at(m.Hi), y, true)
	}
	if b.Log && len(bar.Parts) > 0 && sum > 0 {
		p.Dot(s.at(sum), y, 5, bar.Parts[0].Ink, 1, Number(sum)+" "+b.Unit)
	}
	if bar.Paper > 0 {
		p.Diamond(s.at(bar.Paper), y, 5, Paper, "paper: "+Number(bar.Paper)+" "+b.Unit)
	}
	p.Text(width, y+3.5, Number(sum), small, End, Text, false)
}

// whisker draws an interval along an axis.
func whisker(p Pen, lo, hi, at float64, horizontal bool) {
	pt := func(along, across float64) Point {
		if horizontal {
			return Point{along, at + across}
		}
		return Point{at + across, along}
	}
	p.Line([]Point{pt(lo, 0), pt(hi, 0)}, 1.3, Text, false)
	for _, end := range []float64{lo, hi} {
		p.Line([]Point{pt(end, -3.5), pt(end, 3.5)}, 1.3, Text, false)
	}
}
