package chart

import (
	"fmt"
	"image/color"
	"io"
	"strings"
	"sync"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/font/liberation"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/vgimg"
)

// fonts are Liberation Sans, which has the widths of Helvetica and Arial.
var fonts = sync.OnceValue(func() *font.Cache { return font.NewCache(liberation.Collection()) })

func face(size float64, bold bool) font.Face {
	f := font.Font{Typeface: "Liberation", Variant: "Sans"}
	if bold {
		f.Weight = xfont.WeightBold
	}
	return fonts().Lookup(f, vg.Length(size))
}

func textWidth(s string, size float64) float64 {
	f := face(size, false)
	return float64(f.Width(s))
}

// PNG writes a chart with its title, legend and caption, dark on white, at twice
// the pixels of its width.
func PNG(w io.Writer, c Chart, width float64) error {
	const margin = 20.0
	// The height is known after drawing: once in vain.
	inner := width - 2*margin
	top := margin + 24 + DrawLegend(&blank{}, c.Legend(), inner) + 6
	bottom := top + c.Draw(&blank{}, inner)
	caption := wrap(c.About().Caption, inner, small)
	height := bottom + captionLine*float64(len(caption)) + margin
	img := vgimg.NewWith(vgimg.UseWH(vg.Length(width), vg.Length(height)), vgimg.UseDPI(144), vgimg.UseBackgroundColor(color.White))
	p := &raster{c: img, height: height, dx: margin, dy: margin}
	p.Text(0, 12, c.About().Title, 14, Start, Text, true)
	p.dy += 24
	DrawLegend(p, c.Legend(), inner)
	p.dy = top
	c.Draw(p, inner)
	p.dy = bottom
	for i, line := range caption {
		p.Text(0, captionLine*float64(i+1), line, small, Start, Muted, false)
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(w); err != nil {
		return fmt.Errorf("drawing %s: %w", c.About().Name, err)
	}
	return nil
}

// captionLine is the height of a line of a caption.
const captionLine = 16.0

// wrap breaks a text into lines of a width at most, between words.
func wrap(text string, width, size float64) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && textWidth(line+" "+word, size) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// DrawLegend draws the keys in rows and returns the height that they took.
func DrawLegend(p Pen, keys []Key, width float64) float64 {
	if len(keys) == 0 {
		return 0
	}
	x, y := 0.0, 10.0
	for _, k := range keys {
		w := 20 + textWidth(k.Name, small) + 16
		if x > 0 && x+w > width {
			x, y = 0, y+18
		}
		DrawKey(p, k, x, y-4)
		p.Text(x+20, y, k.Name, small, Start, Muted, false)
		x += w
	}
	return y + 10
}

// DrawKey draws the mark of a key, 16 wide, its middle at y.
func DrawKey(p Pen, k Key, x, y float64) {
	switch k.Mark {
	case Box:
		p.Rect(x+1, y-5, 13, 10, k.Ink, "")
	case Stroke, Dashed:
		p.Line([]Point{{x, y}, {x + 16, y}}, 2, k.Ink, k.Mark == Dashed)
	case Diamond:
		p.Diamond(x+8, y, 5, k.Ink, "")
	case Whisker:
		whisker(p, x+1, x+15, y, true)
	case Dots:
		for i := range 3 {
			p.Dot(x+3+5*float64(i), y, 1.9, k.Ink, 0.45, "")
		}
	}
}

// blank is a pen that leaves no trace: for measuring.
type blank struct{}

func (blank) Rect(_, _, _, _ float64, _ Ink, _ string)                        {}
func (blank) Line([]Point, float64, Ink, bool)                                {}
func (blank) Dot(_, _, _ float64, _ Ink, _ float64, _ string)                 {}
func (blank) Diamond(_, _, _ float64, _ Ink, _ string)                        {}
func (blank) Text(_, _ float64, _ string, _ float64, _ Anchor, _ Ink, _ bool) {}

// raster draws on an image, whose origin is at the bottom.
type raster struct {
	c      *vgimg.Canvas
	height float64
	dx, dy float64
}

func (r *raster) pt(x, y float64) vg.Point {
	return vg.Point{X: vg.Length(x + r.dx), Y: vg.Length(r.height - y - r.dy)}
}

func (r *raster) Rect(x, y, w, h float64, ink Ink, _ string) {
	r.fill([]Point{{x, y}, {x + max(w, 0.5), y}, {x + max(w, 0.5), y + h}, {x, y + h}}, ink.light())
}

func (r *raster) fill(corners []Point, c color.Color) {
	r.c.SetColor(c)
	r.c.Fill(r.path(corners, true))
}

func (r *raster) path(points []Point, closed bool) vg.Path {
	var p vg.Path
	for i, at := range points {
		if i == 0 {
			p.Move(r.pt(at.X, at.Y))
		} else {
			p.Line(r.pt(at.X, at.Y))
		}
	}
	if closed {
		p.Close()
	}
	return p
}

func (r *raster) stroke(points []Point, width float64, c color.Color, dashed, closed bool) {
	r.c.SetColor(c)
	r.c.SetLineWidth(vg.Length(width))
	var dash []vg.Length
	if dashed {
		dash = []vg.Length{5, 4}
	}
	r.c.SetLineDash(dash, 0)
	r.c.Stroke(r.path(points, closed))
}

func (r *raster) Line(points []Point, width float64, ink Ink, dashed bool) {
	if len(points) > 1 {
		r.stroke(points, width, ink.light(), dashed, false)
	}
}

func (r *raster) Dot(x, y, radius float64, ink Ink, opacity float64, _ string) {
	c := ink.light()
	c.A = uint8(255 * opacity)
	var p vg.Path
	center := r.pt(x, y)
	p.Move(vg.Point{X: center.X + vg.Length(radius), Y: center.Y})
	p.Arc(center, vg.Length(radius), 0, 2*3.141592653589793)
	p.Close()
	r.c.SetColor(c)
	r.c.Fill(p)
}

func (r *raster) Diamond(x, y, d float64, ink Ink, _ string) {
	corners := []Point{{x, y - d}, {x + d, y}, {x, y + d}, {x - d, y}}
	r.fill(corners, color.White)
	r.stroke(corners, 1.7, ink.light(), false, true)
}

func (r *raster) Text(x, y float64, s string, size float64, a Anchor, ink Ink, bold bool) {
	f := face(size, bold)
	switch w := float64(f.Width(s)); a {
	case Middle:
		x -= w / 2
	case End:
		x -= w
	}
	r.c.SetColor(ink.light())
	r.c.FillString(f, r.pt(x, y), s)
}

// light is the colour of an ink on white.
func (i Ink) light() color.NRGBA {
	hex := colours[i].light
	return color.NRGBA{uint8(hex >> 16), uint8(hex >> 8), uint8(hex), 255}
}
