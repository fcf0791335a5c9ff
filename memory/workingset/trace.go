package workingset

import (
	"math"
	"time"
)

// Touch is the first use of a page after a restore.
type Touch struct {
	Page  uint32        // number in the memory file
	Write bool          // it was a write, where that is known
	After time.Duration // since the vCPUs were resumed; 0 while device state was loaded
}

// Trace is the first touches of a restored guest, in order.
type Trace struct {
	Of
	Touches []Touch
}

// Pages are the pages of the trace in order of first use.
func (t *Trace) Pages() []uint32 {
	pages := make([]uint32, len(t.Touches))
	for i, touch := range t.Touches {
		pages[i] = touch.Page
	}
	return pages
}

// EncodeTrace returns the trace as the bytes of its file.
func EncodeTrace(t *Trace) ([]byte, error) {
	if err := t.valid(); err != nil {
		return nil, err
	}
	head := traceHeader + int(align(int64(len(t.SnapshotID)), 8))
	p := make([]byte, head, head+len(t.Touches)*touchSize+4)
	copy(p, traceMagic)
	le.PutUint32(p[8:], version)
	le.PutUint32(p[12:], PageSize)
	le.PutUint64(p[16:], uint64(t.MemorySize))
	le.PutUint32(p[24:], uint32(len(t.Touches)))
	le.PutUint32(p[28:], uint32(len(t.SnapshotID)))
	copy(p[traceHeader:], t.SnapshotID)
	for _, touch := range t.Touches {
		var flags uint32
		if touch.Write {
			flags = writeFlag
		}
		p = le.AppendUint32(p, touch.Page)
		p = le.AppendUint32(p, flags)
		p = le.AppendUint64(p, uint64(max(touch.After, 0)))
	}
	p = le.AppendUint32(p, checksum(p))
	if _, err := DecodeTrace(p, t.Of); err != nil { // what could not be read is not written
		return nil, err
	}
	return p, nil
}

// DecodeTrace reads the bytes of a trace file that must belong to of.
func DecodeTrace(p []byte, of Of) (*Trace, error) {
	if err := checkCommon(p, traceMagic, traceHeader, of); err != nil {
		return nil, err
	}
	n, idLen := uint64(le.Uint32(p[24:])), le.Uint32(p[28:])
	if err := checkID(p[traceHeader:], idLen, of); err != nil {
		return nil, err
	}
	head := uint64(traceHeader) + uint64(align(int64(idLen), 8))
	if n > of.pages() || uint64(len(p)) != head+n*touchSize+4 {
		return nil, refuse("%d touches in a file of %d bytes", n, len(p))
	}
	if checksum(p[:len(p)-4]) != le.Uint32(p[len(p)-4:]) {
		return nil, refuse("its checksum is wrong")
	}
	t := &Trace{Of: of, Touches: make([]Touch, n)}
	seen := make([]uint64, (of.pages()+63)/64)
	for i := range t.Touches {
		b := p[head+uint64(i)*touchSize:]
		page, flags, after := le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])
		if uint64(page) >= of.pages() || flags&^writeFlag != 0 || after > math.MaxInt64 || seen[page/64]&(1<<(page%64)) != 0 {
			return nil, refuse("touch %d of page %d is impossible", i, page)
		}
		seen[page/64] |= 1 << (page % 64)
		t.Touches[i] = Touch{Page: page, Write: flags&writeFlag != 0, After: time.Duration(after)}
	}
	return t, nil
}
