package pagemap

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// density is how many pixels of a PNG there are to one of the SVG.
const density = 2

// PNG writes the picture as a PNG, on a light ground.
func (m *Map) PNG(w io.Writer) error {
	s := m.scene()
	p := &painter{img: image.NewRGBA(image.Rect(0, 0, int(s.width*density), int(s.height*density))), faces: map[faceKey]font.Face{}}
	defer p.close()
	draw.Draw(p.img, p.img.Bounds(), image.NewUniform(paper.color()), image.Point{}, draw.Src)
	s.grid.strips(func(c class, x, y, n int) {
		p.fill(s.gridX+float64(x*cell), s.gridY+float64(y*cell), float64(n*cell), cell, looks[c].colour)
	})
	for _, l := range s.lines {
		p.fill(l.x, l.y, max(l.dx, 0.5), max(l.dy, 0.5), inkColours[muted].light)
	}
	for _, q := range s.swatches {
		p.fill(q.x, q.y, q.side, q.side, looks[q.class].colour)
	}
	for _, t := range s.texts {
		if err := p.text(t); err != nil {
			return fmt.Errorf("drawing %q: %w", t.s, err)
		}
	}
	return (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(w, p.img)
}

func (c rgb) color() color.RGBA { return color.RGBA{uint8(c >> 16), uint8(c >> 8), uint8(c), 255} }

type faceKey struct {
	size float64
	bold bool
}

type painter struct {
	img   *image.RGBA
	faces map[faceKey]font.Face
}

func (p *painter) fill(x, y, width, height float64, c rgb) {
	r := image.Rect(int(x*density), int(y*density), int((x+width)*density), int((y+height)*density))
	draw.Draw(p.img, r, image.NewUniform(c.color()), image.Point{}, draw.Src)
}

func (p *painter) text(t text) error {
	face, err := p.face(faceKey{t.size, t.bold})
	if err != nil {
		return err
	}
	d := font.Drawer{Dst: p.img, Src: image.NewUniform(inkColours[t.ink].light.color()), Face: face}
	x, width := fixed.Int26_6(t.x*density*64), d.MeasureString(t.s)
	switch t.anchor {
	case middle:
		x -= width / 2
	case end:
		x -= width
	}
	d.Dot = fixed.Point26_6{X: x, Y: fixed.Int26_6(t.y * density * 64)}
	d.DrawString(t.s)
	return nil
}

func (p *painter) face(k faceKey) (font.Face, error) {
	if f := p.faces[k]; f != nil {
		return f, nil
	}
	ttf := goregular.TTF
	if k.bold {
		ttf = gobold.TTF
	}
	parsed, err := opentype.Parse(ttf)
	if err != nil {
		return nil, err
	}
	f, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: k.size * density, DPI: 72, Hinting: font.HintingNone})
	if err == nil {
		p.faces[k] = f
	}
	return f, err
}

func (p *painter) close() {
	for _, f := range p.faces {
		_ = f.Close() // holds nothing but memory
	}
}
