package pagemap

import (
	"bytes"
	"encoding/xml"
	"image/png"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
)

// sample is a guest of 2 MiB with pages of every class.
func sample() *Map {
	return &Map{
		Title: "Guest memory of <hello>", Subtitle: []string{"policy stream"}, Notes: []string{"a note"}, Pages: 512,
		Known: api.PageMap{
			Data: api.PageRuns{{0, 300}}, Touched: api.PageRuns{{10, 10}, {256, 1}}, Prefetched: api.PageRuns{{10, 8}, {400, 2}},
			Zero: api.PageRuns{{400, 2}}, Missed: api.PageRuns{{256, 1}}, Wasted: api.PageRuns{{11, 1}},
		},
	}
}

func TestClassify(t *testing.T) {
	pages, n := sample().classify()
	want := [classes]int64{hole: 210, booted: 289, touched: 2, prefetched: 7, prefetchedZero: 2, missed: 1, wasted: 1}
	if n != want {
		t.Errorf("%v, want %v", n, want)
	}
	for page, c := range map[int]class{0: booted, 10: prefetched, 11: wasted, 19: touched, 256: missed, 400: prefetchedZero, 511: hole} {
		if pages[page] != c {
			t.Errorf("page %d is %s, want %s", page, looks[pages[page]].name, looks[c].name)
		}
	}
	// A set that goes beyond the guest, from a daemon that is not ours.
	m := Map{Pages: 4, Known: api.PageMap{Data: api.PageRuns{{2, 1 << 31}, {1 << 31, 1 << 31}}}}
	if _, n := m.classify(); n[booted] != 2 {
		t.Errorf("%v", n)
	}
}

func TestGrid(t *testing.T) {
	for _, c := range []struct {
		mib, per int64
		rows     int
	}{{1, 1, 1}, {64, 1, 64}, {256, 1, 256}, {257, 2, 129}, {384, 2, 192}, {512, 2, 256}, {8 << 10, 32, 256}} {
		g := newGrid(make([]class, c.mib<<20/pageSize))
		if g.per != c.per || g.rows() != c.rows {
			t.Errorf("%d MiB: %d pages a cell in %d rows, want %d in %d", c.mib, g.per, g.rows(), c.per, c.rows)
		}
	}
	pages := make([]class, 2*columns*columns)
	pages[7], pages[6] = missed, booted
	g := newGrid(pages)
	if g.cells[3] != missed {
		t.Errorf("a cell with one missed page is %v", g.cells[3])
	}
	cells := 0
	g.strips(func(_ class, x, _, n int) {
		cells += n
		if x+n > columns {
			t.Errorf("a strip of %d from column %d", n, x)
		}
	})
	if cells != len(g.cells) {
		t.Errorf("strips of %d cells, want %d", cells, len(g.cells))
	}
}

func TestSVG(t *testing.T) {
	var b bytes.Buffer
	if err := sample().SVG(&b); err != nil {
		t.Fatal(err)
	}
	var texts []string
	d := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := tok.(xml.CharData); ok {
			texts = append(texts, strings.TrimSpace(string(c)))
		}
	}
	for _, want := range []string{"Guest memory of <hello>", "policy stream", "a note", "guest-physical address", "0x00000000", "0x00200000", "+1 MiB", "missed", "289", "1.13"} {
		if !slices.Contains(texts, want) {
			t.Errorf("no text %q among %q", want, texts)
		}
	}
	if want := `class="c6" d="M0 1h1"`; !strings.Contains(b.String(), want) {
		t.Errorf("the missed page is not drawn as %s", want)
	}
	var again bytes.Buffer
	if err := sample().SVG(&again); err != nil || !bytes.Equal(again.Bytes(), b.Bytes()) {
		t.Errorf("drawn twice it differs: %v", err)
	}
}

func TestPNG(t *testing.T) {
	var b bytes.Buffer
	m := sample()
	if err := m.PNG(&b); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	s := m.scene()
	for cellAt, c := range map[[2]int]class{{0, 0}: booted, {10, 0}: prefetched, {11, 0}: wasted, {0, 1}: missed, {144, 1}: prefetchedZero, {255, 1}: hole} {
		x, y := int(s.gridX+float64(cellAt[0]*cell)+1)*density, int(s.gridY+float64(cellAt[1]*cell)+1)*density
		if got := img.At(x, y); got != looks[c].colour.color() {
			t.Errorf("cell %v is %v, want that of %s", cellAt, got, looks[c].name)
		}
	}
}

func TestUnknownIsSaid(t *testing.T) {
	m := sample()
	m.Known.Wasted, m.Known.Missed = nil, nil
	said := 0
	for _, x := range m.scene().texts {
		if x.s == "not known" {
			said++
		}
	}
	if said != 2 {
		t.Errorf("said %d times, want 2", said)
	}
}
