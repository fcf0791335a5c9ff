package workingset

import (
	"math"
	"slices"
	"time"
)

// PageSize is the size of a page everywhere in these formats, in bytes.
const PageSize = 4096

// Run is a piece of guest memory: Pages pages from page number First, counted
// in the memory file. A Zero run has no contents.
type Run struct {
	First uint32
	Pages uint32
	Zero  bool
	// At is when the first of its pages was first used, in microseconds since
	// the vCPUs ran.
	At uint32
}

// End is the page after the run.
func (r Run) End() uint32 { return r.First + r.Pages }

// Bytes of contents that the run has in a working-set file.
func (r Run) Bytes() int64 {
	if r.Zero {
		return 0
	}
	return int64(r.Pages) * PageSize
}

// Runs makes maximal runs of the pages of a trace, given in order of first use: each is as long
// as contiguous pages of one kind reach (zero says which are zero), but not
// over limit pages when limit is positive, and the runs stand in the order in
// which the first of their pages was used. A page that comes twice counts once.
func Runs(touches []Touch, zero func(page uint32) bool, limit int) []Run {
	type use struct {
		page uint32
		rank int // place in the order of first use
	}
	uses := make([]use, len(touches))
	for i, t := range touches {
		uses[i] = use{t.Page, i}
	}
	slices.SortFunc(uses, func(a, b use) int {
		if a.page != b.page {
			return int(int64(a.page) - int64(b.page))
		}
		return a.rank - b.rank
	})
	type ranked struct {
		Run
		rank int
	}
	var runs []ranked
	for i, u := range uses {
		if i > 0 && u.page == uses[i-1].page {
			continue
		}
		z := zero(u.page)
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.End() == u.page && last.Zero == z && (limit <= 0 || int(last.Pages) < limit) {
				last.Pages++
				last.rank = min(last.rank, u.rank)
				continue
			}
		}
		runs = append(runs, ranked{Run{First: u.page, Pages: 1, Zero: z}, u.rank})
	}
	slices.SortFunc(runs, func(a, b ranked) int { return a.rank - b.rank })
	out := make([]Run, len(runs))
	for i, r := range runs {
		out[i] = r.Run
		out[i].At = uint32(min(touches[r.rank].After/time.Microsecond, math.MaxUint32))
	}
	return out
}
