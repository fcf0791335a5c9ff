package workingset

import (
	"fmt"
	"io"
	"slices"
)

// Set is the head of a working-set file: everything but the contents.
type Set struct {
	Of
	Runs          []Run
	ContentOffset int64    // bytes
	ContentBytes  int64    // bytes
	Sums          []uint32 // CRC-32 of each block of BlockSize bytes of contents
}

// Pages is the number of pages, zero pages included.
func (s *Set) Pages() (n int64) {
	for _, r := range s.Runs {
		n += int64(r.Pages)
	}
	return n
}

// Size of the whole file in bytes.
func (s *Set) Size() int64 { return s.ContentOffset + s.ContentBytes }

// Verify checks a part of the contents, from a multiple of BlockSize on, that
// ends at a multiple of BlockSize or with the contents.
func (s *Set) Verify(part []byte, from int64) error {
	for block := from / BlockSize; len(part) > 0; block++ {
		b := part[:min(int64(len(part)), BlockSize)]
		part = part[len(b):]
		if block >= int64(len(s.Sums)) || checksum(b) != s.Sums[block] {
			return refuse("block %d of its contents has a wrong checksum", block)
		}
	}
	return nil
}

// contentOffset is where the contents begin.
func contentOffset(idLen, runs, blocks int64) int64 {
	return align(setHeader+align(idLen, 8)+runs*runSize+blocks*4, PageSize)
}

// newSet lays a working set out.
func newSet(of Of, runs []Run) (*Set, error) {
	s := &Set{Of: of, Runs: runs}
	if err := of.valid(); err != nil {
		return nil, err
	}
	for _, r := range runs {
		s.ContentBytes += r.Bytes()
	}
	blocks := align(s.ContentBytes, BlockSize) / BlockSize
	s.Sums = make([]uint32, blocks)
	s.ContentOffset = contentOffset(int64(len(of.SnapshotID)), int64(len(runs)), blocks)
	return s, s.checkRuns()
}

// WriteSet writes a working-set file: the contents of runs, asked of read, and
// in front of them the head.
func WriteSet(w io.WriterAt, of Of, runs []Run, read func(p []byte, first uint32) error) (*Set, error) {
	s, err := newSet(of, runs)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 0, BlockSize)
	block := 0
	flush := func() error {
		s.Sums[block] = checksum(buf)
		if _, err := w.WriteAt(buf, s.ContentOffset+int64(block)*BlockSize); err != nil {
			return err
		}
		block++
		buf = buf[:0]
		return nil
	}
	for _, r := range runs {
		for first, left := r.First, r.Bytes(); left > 0; {
			n := min(left, int64(cap(buf)-len(buf)))
			p := buf[len(buf) : len(buf)+int(n)]
			if err := read(p, first); err != nil {
				return nil, fmt.Errorf("reading page %d for the working set: %w", first, err)
			}
			buf = buf[:len(buf)+int(n)]
			first, left = first+uint32(n/PageSize), left-n
			if len(buf) == cap(buf) {
				if err := flush(); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(buf) > 0 {
		if err := flush(); err != nil {
			return nil, err
		}
	}
	_, err = w.WriteAt(s.head(), 0)
	return s, err
}

// head encodes everything before the contents.
func (s *Set) head() []byte {
	p := make([]byte, s.ContentOffset)
	copy(p, setMagic)
	le.PutUint32(p[8:], version)
	le.PutUint32(p[12:], PageSize)
	le.PutUint64(p[16:], uint64(s.MemorySize))
	le.PutUint32(p[24:], uint32(len(s.Runs)))
	le.PutUint32(p[28:], uint32(len(s.Sums)))
	le.PutUint32(p[32:], BlockSize)
	le.PutUint32(p[36:], uint32(len(s.SnapshotID)))
	le.PutUint64(p[40:], uint64(s.ContentOffset))
	le.PutUint64(p[48:], uint64(s.ContentBytes))
	copy(p[setHeader:], s.SnapshotID)
	b := p[setHeader+align(int64(len(s.SnapshotID)), 8):]
	for _, r := range s.Runs {
		n := r.Pages
		if r.Zero {
			n |= zeroFlag
		}
		le.PutUint32(b, r.First)
		le.PutUint32(b[4:], n)
		le.PutUint32(b[8:], r.At)
		b = b[runSize:]
	}
	for _, sum := range s.Sums {
		le.PutUint32(b, sum)
		b = b[4:]
	}
	le.PutUint32(p[setSumOffset:], checksum(p))
	return p
}

// ReadSet reads the head of a working-set file of size bytes that must belong
// to of. The contents are read by the caller, and verified with Verify.
func ReadSet(r io.ReaderAt, size int64, of Of) (*Set, error) {
	fixed := make([]byte, setHeader)
	if err := readAt(r, fixed, size); err != nil {
		return nil, err
	}
	if err := checkCommon(fixed, setMagic, setHeader, of); err != nil {
		return nil, err
	}
	runs, blocks, idLen := int64(le.Uint32(fixed[24:])), int64(le.Uint32(fixed[28:])), int64(le.Uint32(fixed[36:]))
	offset, bytes := int64(le.Uint64(fixed[40:])), int64(le.Uint64(fixed[48:]))
	switch {
	case le.Uint32(fixed[32:]) != BlockSize:
		return nil, refuse("blocks of %d bytes", le.Uint32(fixed[32:]))
	case bytes < 0 || bytes > of.MemorySize || bytes%PageSize != 0 || blocks != align(bytes, BlockSize)/BlockSize:
		return nil, refuse("%d blocks for %d bytes of contents", blocks, bytes)
	case idLen > maxID || uint64(runs) > of.pages() || offset != contentOffset(idLen, runs, blocks):
		return nil, refuse("%d runs, contents at %d", runs, offset)
	case size != offset+bytes:
		return nil, refuse("it has %d bytes, and should have %d", size, offset+bytes)
	}
	p := make([]byte, offset)
	if err := readAt(r, p, size); err != nil {
		return nil, err
	}
	return decodeHead(p, of, runs, blocks, bytes)
}

func readAt(r io.ReaderAt, p []byte, size int64) error {
	if int64(len(p)) > size {
		return refuse("it has only %d bytes", size)
	}
	n, err := r.ReadAt(p, 0)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return refuse("it was cut short to %d bytes", n)
	}
	return err
}

func decodeHead(p []byte, of Of, runs, blocks, bytes int64) (*Set, error) {
	sum := le.Uint32(p[setSumOffset:])
	le.PutUint32(p[setSumOffset:], 0)
	if checksum(p) != sum {
		return nil, refuse("its checksum is wrong")
	}
	idLen := le.Uint32(p[36:])
	if err := checkID(p[setHeader:], idLen, of); err != nil {
		return nil, err
	}
	s := &Set{Of: of, Runs: make([]Run, runs), Sums: make([]uint32, blocks), ContentOffset: int64(len(p)), ContentBytes: bytes}
	b := p[setHeader+align(int64(idLen), 8):]
	left := bytes
	for i := range s.Runs {
		n := le.Uint32(b[4:])
		s.Runs[i] = Run{First: le.Uint32(b), Pages: n &^ zeroFlag, Zero: n&zeroFlag != 0, At: le.Uint32(b[8:])}
		left -= s.Runs[i].Bytes()
		b = b[runSize:]
	}
	for i := range s.Sums {
		s.Sums[i] = le.Uint32(b[4*i:])
	}
	if left != 0 {
		return nil, refuse("its runs need %d bytes of contents more or less than there are", left)
	}
	return s, s.checkRuns()
}

// checkRuns refuses runs that are empty, overlap or leave the guest's memory.
func (s *Set) checkRuns() error {
	sorted := slices.Clone(s.Runs)
	slices.SortFunc(sorted, func(a, b Run) int { return int(int64(a.First) - int64(b.First)) })
	end := uint64(0)
	for _, r := range sorted {
		if r.Pages == 0 || uint64(r.First) < end || uint64(r.First)+uint64(r.Pages) > s.pages() {
			return refuse("a run of %d pages from page %d is impossible", r.Pages, r.First)
		}
		end = uint64(r.First) + uint64(r.Pages)
	}
	return nil
}
