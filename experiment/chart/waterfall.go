package chart

import "math"

// Waterfall is spans of time below one another, each where it was.
type Waterfall struct {
	Info
	Unit string
	Keys []Key
	Rows []Row
}

// Row is one span.
type Row struct {
	Label    string
	Depth    int // below how many others it is
	From, To float64
	Ink      Ink
	Tip      string
	Failed   bool
}

// About implements Chart.
func (c *Waterfall) About() Info { return c.Info }

// Legend implements Chart: the keys that something is drawn in.
func (c *Waterfall) Legend() (keys []Key) {
	inks := map[Ink]bool{}
	for _, r := range c.Rows {
		inks[r.Ink] = true
	}
	for _, k := range c.Keys {
		if inks[k.Ink] {
			keys = append(keys, k)
		}
	}
	return keys
}

const (
	indent  = 11.0
	numbers = 58.0 // width of the column of durations
)

// Draw implements Chart.
func (c *Waterfall) Draw(p Pen, width float64) float64 {
	labels, top := 0.0, 0.0
	for _, r := range c.Rows {
		labels = max(labels, indent*float64(r.Depth)+textWidth(r.Label, normal))
		top = max(top, r.To)
	}
	left := min(labels*1.1+12, width*0.45) // type on a page may be wider than Liberation
	right := width - numbers
	s, at := newScale(0, top, false, left, right, int(max((right-left)/90, 2)))
	s.hi = top // the last span ends at the edge
	height := float64(len(c.Rows))*rowHeight + 6
	for _, v := range at {
		if x := s.at(v); x <= right+0.5 {
			p.Line([]Point{{x, 0}, {x, height}}, 1, Grid, false)
			p.Text(x, height+14, Number(v), small, Middle, Muted, false)
		}
	}
	p.Text(width, height+14, c.Unit, small, End, Muted, false)
	for i, r := range c.Rows {
		y := 4 + float64(i)*rowHeight + rowHeight/2
		ink := Text
		if r.Failed {
			ink = Orange
		}
		p.Text(indent*float64(r.Depth), y+4, r.Label, normal, Start, ink, r.Depth == 0)
		from, to := s.at(r.From), s.at(r.To)
		p.Rect(from, y-thickness/2, math.Max(to-from, 1), thickness, r.Ink, r.Tip)
		p.Text(width, y+4, Number(r.To-r.From), small, End, Muted, false)
	}
	return height + axis
}
