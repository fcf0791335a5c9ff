package memory

// sample is the pages of a plan that one restore holds back: their contents are
// at hand, but they are installed only when the guest asks for them. That shows
// whether it does, at the price of a fault for those that it does ask for. What
// is held back is a copy, so that a guest that takes long to answer does not keep
// shared buffers.
type sample struct {
	held  bitmap           // held back; owned by the server's loop once it runs
	place map[uint32]int32 // of a page in contents, in pages
	pages []uint32
	data  []byte
	here  []bool // the page's contents have come
}

// newSample holds back one page in share of a plan; with the same turn the same
// ones, with the next turn others, until all had theirs.
func newSample(p *plan, back *backing, turn, share uint32) *sample {
	x := &sample{held: newBitmap(int(back.pages)), place: make(map[uint32]int32)}
	for i := range p.runs {
		for page := p.runs[i].First; page < p.runs[i].End(); page++ {
			// Scattered, so that a turn is not all of one data structure. A page that is left
			// to the kernel would seem to be held back in vain.
			if page*0x9E3779B1>>16%share == turn%share && !back.empty(page/blockPages) {
				x.held.set(page)
				x.place[page] = int32(len(x.pages))
				x.pages = append(x.pages, page)
			}
		}
	}
	x.data, x.here = make([]byte, len(x.pages)*pageSize), make([]bool, len(x.pages))
	return x
}

// keepAll keeps what is held back of runs whose contents have come.
func (x *sample) keepAll(runs []planned) {
	for i := range runs {
		if r := &runs[i]; r.Zero || r.data != nil {
			x.keep(r)
		}
	}
}

// keep copies what is held back of a run whose contents have come.
func (x *sample) keep(r *planned) {
	for page := r.First; page < r.End(); page++ {
		if !x.held.has(page) {
			continue
		}
		at := x.place[page]
		if !r.Zero {
			copy(x.data[int(at)*pageSize:][:pageSize], r.data[int(page-r.First)*pageSize:])
		}
		x.here[at] = true
	}
}

// contents returns those of a page that is held back and has come, else nil.
func (x *sample) contents(page uint32) []byte {
	if x == nil || !x.held.has(page) {
		return nil
	}
	at := x.place[page]
	if !x.here[at] {
		return nil
	}
	return x.data[int(at)*pageSize:][:pageSize]
}

// holds says that a page is not to be installed ahead.
func (x *sample) holds(page uint32) bool { return x != nil && x.held.has(page) }
