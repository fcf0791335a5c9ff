package memory

import (
	"math/bits"

	"github.com/skep-dev/skep/api"
)

// bitmap is a set of page numbers. The zero value of a page is "not in it".
type bitmap []uint64

func newBitmap(pages int) bitmap { return make(bitmap, (pages+63)/64) }

func (b bitmap) has(i uint32) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i uint32)    { b[i/64] &^= 1 << (i % 64) }

func (b bitmap) setRange(from, to uint32) {
	for i := from; i < to; i++ {
		if i%64 == 0 && to-i >= 64 {
			b[i/64] = ^uint64(0)
			i += 63
			continue
		}
		b.set(i)
	}
}

// count is the number of pages in the set.
func (b bitmap) count() (n int64) {
	for _, w := range b {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// add, remove and keep are union, difference and intersection with another set
// of pages of the same guest.
func (b bitmap) add(other bitmap) {
	for i := range b {
		b[i] |= other[i]
	}
}

func (b bitmap) remove(other bitmap) {
	for i := range b {
		b[i] &^= other[i]
	}
}

func (b bitmap) keep(other bitmap) {
	for i := range b {
		b[i] &= other[i]
	}
}

// runs lists the set; nil only for a nil set.
func (b bitmap) runs() api.PageRuns {
	if b == nil {
		return nil
	}
	out := api.PageRuns{}
	for i := range uint32(len(b) * 64) {
		if !b.has(i) {
			continue
		}
		if n := len(out); n > 0 && out[n-1][0]+out[n-1][1] == i {
			out[n-1][1]++
		} else {
			out = append(out, [2]uint32{i, 1})
		}
	}
	return out
}
