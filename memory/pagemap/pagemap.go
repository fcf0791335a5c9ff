// Package pagemap draws what is known of the pages of a guest: a picture with a
// cell for every page, by guest-physical address. It stands beside the way of a
// cold invocation: package memory knows the pages, `skep snapshot inspect --map`
// asks for the picture.
package pagemap

import (
	"github.com/skep-dev/skep/api"
)

// Map is what is to be drawn. All but Pages may be zero.
type Map struct {
	Title    string
	Subtitle []string // lines under the title
	Notes    []string // lines under the legend
	Pages    int64    // of the guest
	Known    api.PageMap
}

// class is what a page is drawn as. Where a cell stands for several pages the
// greatest class among them is shown: the rare ones are the telling ones.
type class uint8

const (
	hole class = iota
	booted
	prefetchedZero
	prefetched
	touched
	wasted
	missed
	classes
)

// look is how a class is drawn and named. Colours are those of Okabe and Ito,
// which people with any kind of colour vision can tell apart.
var looks = [classes]struct {
	name, means string
	colour      rgb
	dark        rgb // on a dark ground, where it differs
}{
	hole:           {"untouched", "never written: a hole in the snapshot", 0xeceef1, 0x24282e},
	booted:         {"booted", "in the snapshot, not used since", 0xbcc3cc, 0x555d68},
	prefetched:     {"prefetched", "in the working set, with contents", 0x0072b2, 0x2f95d6},
	prefetchedZero: {"prefetched zeros", "in the working set, nothing to read", 0x7cc7f2, 0x9fd8f8},
	touched:        {"touched", "in the trace, no working set yet", 0x009e73, 0x1fbf93},
	missed:         {"missed", "touched, and not prefetched", 0xd55e00, 0xff7a1a},
	wasted:         {"wasted", "prefetched, and seen not to be touched", 0xf2c200, 0xffdc3a},
}

// legend is the order in which the classes are listed.
var legend = []class{prefetched, prefetchedZero, missed, wasted, touched, booted, hole}

// classify gives every page its class, and counts them.
func (m *Map) classify() ([]class, [classes]int64) {
	pages := make([]class, m.Pages)
	paint := func(runs api.PageRuns, c class) {
		for _, r := range runs {
			for p := int64(r[0]); p < min(int64(r[0])+int64(r[1]), m.Pages); p++ {
				pages[p] = c
			}
		}
	}
	k := &m.Known
	paint(k.Data, booted)
	paint(k.Touched, touched)
	paint(k.Prefetched, prefetched)
	paint(k.Zero, prefetchedZero)
	paint(k.Wasted, wasted)
	paint(k.Missed, missed)
	var n [classes]int64
	for _, c := range pages {
		n[c]++
	}
	return pages, n
}

// known says whether a class's pages could have been told.
func (m *Map) known(c class) bool {
	switch c {
	case wasted:
		return m.Known.Wasted != nil
	case missed:
		return m.Known.Missed != nil
	}
	return true
}

// The grid has so many columns, and as many rows at most.
const columns = 256

// grid is the cells, row by row.
type grid struct {
	cells []class
	per   int64 // pages of a cell, a power of two
}

func newGrid(pages []class) grid {
	g := grid{per: 1}
	for int64(len(pages)) > g.per*columns*columns {
		g.per *= 2
	}
	g.cells = make([]class, (int64(len(pages))+g.per-1)/g.per)
	for i, c := range pages {
		cell := &g.cells[int64(i)/g.per]
		*cell = max(*cell, c)
	}
	return g
}

func (g grid) rows() int { return (len(g.cells) + columns - 1) / columns }

// rowBytes is how much memory a row stands for.
func (g grid) rowBytes() int64 { return columns * g.per * pageSize }

const pageSize = 4096

// strips calls f for every longest stretch of cells of one class in a row.
func (g grid) strips(f func(c class, x, y, n int)) {
	for from := 0; from < len(g.cells); {
		to := from + 1
		for to < len(g.cells) && to%columns != 0 && g.cells[to] == g.cells[from] {
			to++
		}
		f(g.cells[from], from%columns, from/columns, to-from)
		from = to
	}
}
