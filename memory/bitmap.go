package memory

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
