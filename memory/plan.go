package memory

import (
	"cmp"
	"slices"

	"github.com/skep-dev/skep/memory/workingset"
)

// plan is what a policy wants installed ahead of faults: runs in the order in
// which they are to be installed. It is built before the guest's memory is
// there; from then on it belongs to the server's goroutine.
type plan struct {
	runs   []planned
	byPage []uint32 // indices of runs, sorted by their first page; runs do not overlap; shared and read-only
	left   int      // runs that are not done
	pages  int64
}

type planned struct {
	workingset.Run
	data []byte  // contents, once they are in memory; unused for a zero run
	buf  *buffer // that data lies in; a reference is held
	done bool
}

// pieceLimit is how many pages are installed between two looks at the events:
// some 50 µs, which a real fault may have to wait. Longer runs are cut, which
// costs next to nothing: a call's own cost is less than that of one page.
const pieceLimit = 64

// maxPiece is how many pages that is while the guest faults on pages of the plan
// each time: what it waits for is among them.
const maxPiece = 8 * pieceLimit

// layout is what a plan is made of, the same for every restore: runs cut into pieces, in the
// order in which they are to be installed.
type layout struct {
	runs     []workingset.Run
	byPage   []uint32 // as a plan's
	pages    int64
	mayLeave int // runs that need not be installed when the vCPUs begin to run, where installing goes on
}

func newPlan(runs []workingset.Run) *plan { return newLayout(runs).plan() }

// newLayout also cuts runs where their contents, laid one after the other, cross
// from a part that is read at once to the next, so that each lies in one buffer.
func newLayout(runs []workingset.Run) *layout {
	l := &layout{runs: make([]workingset.Run, 0, len(runs))}
	filled := int64(0) // bytes of contents so far
	for _, r := range runs {
		l.pages += int64(r.Pages)
		for r.Pages > 0 {
			piece := r
			piece.Pages = min(r.Pages, pieceLimit)
			if !r.Zero {
				piece.Pages = min(piece.Pages, uint32(partLeft(filled)/pageSize))
				filled += piece.Bytes()
			}
			l.runs = append(l.runs, piece)
			r.First, r.Pages = piece.End(), r.Pages-piece.Pages
		}
	}
	l.byPage = make([]uint32, len(l.runs))
	for i := range l.byPage {
		l.byPage[i] = uint32(i)
	}
	slices.SortFunc(l.byPage, func(a, b uint32) int { return cmp.Compare(l.runs[a].First, l.runs[b].First) })
	l.mayLeave = mayLeave(l.runs)
	return l
}

// plan begins a restore's plan.
func (l *layout) plan() *plan {
	p := &plan{runs: make([]planned, len(l.runs)), byPage: l.byPage, left: len(l.runs), pages: l.pages}
	for i, r := range l.runs {
		p.runs[i].Run = r
	}
	return p
}

// firstPart is how much is read at once until the first buffer's worth has come:
// installing begins when the first of it is there, and later reads are ahead of it.
const firstPart = workingset.BlockSize

// partLeft is how many bytes there are from a place in the contents to the end of
// the part that it is in.
func partLeft(at int64) int64 {
	size := int64(bufferSize)
	if at < bufferSize {
		size = firstPart
	}
	return size - at%size
}

// part is a piece of the contents that is read at once: the runs of a span.
type part struct {
	span
	at, bytes int64 // where it is in the contents, and its size
}

// parts cuts the plan into what is read at once.
func (p *plan) parts() []part {
	var out []part
	var now part
	for i := range p.runs {
		n := p.runs[i].Bytes()
		if now.bytes+n > partLeft(now.at) {
			out = append(out, now)
			now = part{span: span{i, i}, at: now.at + now.bytes}
		}
		now.to, now.bytes = i+1, now.bytes+n
	}
	if now.from < now.to {
		out = append(out, now)
	}
	return out
}

// span is the runs [from, to) of a plan, in plan order.
type span struct{ from, to int }

// spans cuts the plan into pieces whose contents fit into limit bytes.
func (p *plan) spans(limit int64) []span {
	var out []span
	from, bytes := 0, int64(0)
	for i := range p.runs {
		if n := p.runs[i].Bytes(); bytes+n > limit {
			out = append(out, span{from, i})
			from, bytes = i, n
		} else {
			bytes += n
		}
	}
	if from < len(p.runs) {
		out = append(out, span{from, len(p.runs)})
	}
	return out
}

func (p *plan) bytes(s span) (n int64) {
	for i := s.from; i < s.to; i++ {
		n += p.runs[i].Bytes()
	}
	return n
}

// find returns the run that holds a page, or nil.
func (p *plan) find(page uint32) *planned {
	if i := p.index(page); i >= 0 {
		return &p.runs[i]
	}
	return nil
}

// index is that of the run that holds a page, or -1.
func (p *plan) index(page uint32) int {
	lo, hi := 0, len(p.byPage)
	for lo < hi { // by hand: sort.Search would allocate its closure
		mid := int(uint(lo+hi) >> 1)
		if p.runs[p.byPage[mid]].First <= page {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || page >= p.runs[p.byPage[lo-1]].End() {
		return -1
	}
	return int(p.byPage[lo-1])
}

// chunk is a piece of a plan whose contents are in memory: the runs [from, to)
// in plan order, contents in data one after the other.
type chunk struct {
	span
	data []byte
	buf  *buffer // its reference passes to the server; nil for zero runs only
}

// take attaches a chunk's contents to its runs.
func (p *plan) take(c chunk) {
	data := c.data
	for i := c.from; i < c.to; i++ {
		r := &p.runs[i]
		n := r.Bytes()
		if n == 0 || r.done {
			data = data[n:]
			continue
		}
		r.data, r.buf = data[:n:n], c.buf
		c.buf.ref()
		data = data[n:]
	}
	if c.buf != nil {
		c.buf.unref()
	}
}

// have marks those runs as done of which all pages are there. No contents have been
// attached to any yet.
func (p *plan) have(present bitmap) {
	for i := range p.runs {
		r := &p.runs[i]
		all := true
		for page := r.First; page < r.End() && all; page++ {
			all = present.has(page)
		}
		if all {
			p.finish(r)
		}
	}
}

// finish marks a run as done and lets go of its contents.
func (p *plan) finish(r *planned) {
	if r.done {
		return
	}
	r.done = true
	p.left--
	p.drop(r)
}

func (p *plan) drop(r *planned) {
	if r.buf != nil {
		r.buf.unref()
		r.buf, r.data = nil, nil
	}
}
