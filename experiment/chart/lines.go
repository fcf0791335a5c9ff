package chart

import (
	"math"

	"github.com/skep-dev/skep/experiment/stat"
)

// Lines is series over a common axis.
type Lines struct {
	Info
	XLabel, YLabel string
	XLog, YLog     bool
	XTicks         []float64 // default: round ones
	Series         []Series
	Cut            float64 // a place on the horizontal axis where something changes; 0: none
	CutLabel       string
}

// Series is one line.
type Series struct {
	Name   string
	Ink    Ink
	Dashed bool // replayed, or the paper's
	Marks  bool // diamonds, and no line between them
	Silent bool // not in the legend
	Points []XY
}

// XY is a point of a series.
type XY struct {
	X       float64
	Summary stat.Summary
	Samples []float64
}

// NewXY summarises samples at a place.
func NewXY(x float64, samples []float64) XY { return XY{x, stat.Summarize(samples), samples} }

// About implements Chart.
func (l *Lines) About() Info { return l.Info }

// Legend implements Chart.
func (l *Lines) Legend() []Key {
	var keys []Key
	for _, s := range l.Series {
		if s.Silent {
			continue
		}
		k := Key{s.Name, s.Ink, Stroke}
		if s.Dashed {
			k.Mark = Dashed
		}
		if s.Marks {
			k.Mark = Diamond
		}
		keys = append(keys, k)
	}
	return keys
}

// Draw implements Chart.
func (l *Lines) Draw(p Pen, width float64) float64 {
	const top, bottom = 22.0, 34.0
	height := min(max(width*0.5, 220), 330)
	xlo, xhi, ylo, yhi := l.extent()
	ys, yat := newScale(ylo, yhi, l.YLog, height-bottom, top, 5)
	left := 12.0
	for _, v := range yat {
		left = max(left, textWidth(Number(v), small)+10)
	}
	xs := scale{lo: xlo, hi: xhi, from: left + 8, to: width - 12, log: l.XLog}
	for _, v := range yat {
		p.Line([]Point{{left, ys.at(v)}, {width, ys.at(v)}}, 1, Grid, false)
		p.Text(left-6, ys.at(v)+3.5, Number(v), small, End, Muted, false)
	}
	p.Text(0, 10, l.YLabel, small, Start, Muted, false)
	for _, v := range l.ticks(xlo, xhi, int(max(width/70, 3))) {
		p.Text(xs.at(v), height-bottom+16, Number(v), small, Middle, Muted, false)
	}
	p.Text(width, height-2, l.XLabel, small, End, Muted, false)
	if l.Cut > 0 {
		x := xs.at(l.Cut)
		p.Line([]Point{{x, top}, {x, height - bottom}}, 1, Muted, true)
		p.Text(x+4, top+8, l.CutLabel, small, Start, Muted, false)
	}
	for _, s := range l.Series {
		l.series(p, xs, ys, s)
	}
	return height
}

func (l *Lines) ticks(lo, hi float64, most int) []float64 {
	if len(l.XTicks) > 0 {
		return l.XTicks
	}
	step := max(niceStep((hi-lo)/float64(most)), 1)
	var at []float64
	for v := math.Ceil(lo/step) * step; v <= hi; v += step {
		at = append(at, v)
	}
	return at
}

func (l *Lines) extent() (xlo, xhi, ylo, yhi float64) {
	xlo, ylo = math.Inf(1), math.Inf(1)
	for _, s := range l.Series {
		for _, pt := range s.Points {
			xlo, xhi = min(xlo, pt.X), max(xhi, pt.X)
			for _, v := range append([]float64{pt.Summary.Lo, pt.Summary.Hi, pt.Summary.Median}, pt.Samples...) {
				if v > 0 {
					ylo = min(ylo, v)
				}
				yhi = max(yhi, v)
			}
		}
	}
	if xhi <= xlo {
		xlo, xhi = xlo-1, xlo+1
	}
	return xlo, xhi, ylo, yhi
}

func (l *Lines) series(p Pen, xs, ys scale, s Series) {
	var path []Point
	for _, pt := range s.Points {
		path = append(path, Point{xs.at(pt.X), ys.at(pt.Summary.Median)})
	}
	if s.Marks {
		for i, pt := range s.Points {
			p.Diamond(path[i].X, path[i].Y, 5, s.Ink, s.Name+": "+Number(pt.Summary.Median))
		}
		return
	}
	p.Line(path, 2, s.Ink, s.Dashed)
	for i, pt := range s.Points {
		for _, v := range pt.Samples {
			if len(pt.Samples) > 1 {
				p.Dot(path[i].X, ys.at(v), 1.7, s.Ink, 0.45, s.Name+": "+Number(v))
			}
		}
		if m := pt.Summary; m.N > 1 && m.Hi > m.Lo {
			whisker(p, ys.at(m.Lo), ys.at(m.Hi), path[i].X, false)
		}
		p.Dot(path[i].X, path[i].Y, 3.4, s.Ink, 1, s.Name+": "+Number(pt.Summary.Median))
	}
}
