package workingset

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Learned is what restores have shown of a working set since it was recorded.
// It is advice: without it nothing is wrong, and it is never synced to disk.
type Learned struct {
	Of
	Restores   uint32 // that were observed since the working set was recorded
	Poor       uint32 // the last so many of them were served worse with the working set than without
	Recordings uint32 // times that it was recorded anew for that reason
	Without    uint32 // starts that are still to be made without it
	// Pages that there is something to say of, in ascending order.
	Pages []Evidence
}

// Evidence is what restores have shown of one page.
type Evidence struct {
	Page uint32
	// At is when it was touched last time, in microseconds since the vCPUs ran.
	At uint32
	// Missed has a bit for each of the last eight restores, the latest in bit 0:
	// the page was touched and not in the working set.
	Missed uint8
	// Idle is how often in a row the page was held back and not touched.
	Idle uint8
}

const (
	learnedMagic  = "skeplern"
	learnedHeader = 48
	evidenceSize  = 12
)

// EncodeLearned returns it as the bytes of its file.
func EncodeLearned(l *Learned) ([]byte, error) {
	if err := l.valid(); err != nil {
		return nil, err
	}
	head := learnedHeader + int(align(int64(len(l.SnapshotID)), 8))
	p := make([]byte, head, head+len(l.Pages)*evidenceSize+4)
	copy(p, learnedMagic)
	le.PutUint32(p[8:], version)
	le.PutUint32(p[12:], PageSize)
	le.PutUint64(p[16:], uint64(l.MemorySize))
	for i, n := range []uint32{uint32(len(l.Pages)), uint32(len(l.SnapshotID)), l.Restores, l.Poor, l.Recordings, l.Without} {
		le.PutUint32(p[24+4*i:], n)
	}
	copy(p[learnedHeader:], l.SnapshotID)
	for _, e := range l.Pages {
		p = le.AppendUint32(p, e.Page)
		p = le.AppendUint32(p, e.At)
		p = append(p, e.Missed, e.Idle, 0, 0)
	}
	p = le.AppendUint32(p, checksum(p))
	if _, err := DecodeLearned(p, l.Of); err != nil { // what could not be read is not written
		return nil, err
	}
	return p, nil
}

// DecodeLearned reads the bytes of a file that must belong to of.
func DecodeLearned(p []byte, of Of) (*Learned, error) {
	if err := checkCommon(p, learnedMagic, learnedHeader, of); err != nil {
		return nil, err
	}
	n, idLen := uint64(le.Uint32(p[24:])), le.Uint32(p[28:])
	if err := checkID(p[learnedHeader:], idLen, of); err != nil {
		return nil, err
	}
	head := uint64(learnedHeader) + uint64(align(int64(idLen), 8))
	if n > of.pages() || uint64(len(p)) != head+n*evidenceSize+4 {
		return nil, refuse("%d pages in a file of %d bytes", n, len(p))
	}
	if checksum(p[:len(p)-4]) != le.Uint32(p[len(p)-4:]) {
		return nil, refuse("its checksum is wrong")
	}
	l := &Learned{
		Of: of, Restores: le.Uint32(p[32:]), Poor: le.Uint32(p[36:]),
		Recordings: le.Uint32(p[40:]), Without: le.Uint32(p[44:]), Pages: make([]Evidence, n),
	}
	for i := range l.Pages {
		b := p[head+uint64(i)*evidenceSize:]
		e := Evidence{Page: le.Uint32(b), At: le.Uint32(b[4:]), Missed: b[8], Idle: b[9]}
		if uint64(e.Page) >= of.pages() || i > 0 && e.Page <= l.Pages[i-1].Page || b[10] != 0 || b[11] != 0 {
			return nil, refuse("entry %d of page %d is impossible", i, e.Page)
		}
		l.Pages[i] = e
	}
	return l, nil
}

// LoadLearned reads it from a snapshot's directory. Errors are those of LoadTrace.
func LoadLearned(dir string, of Of) (*Learned, error) {
	p, err := readSmall(filepath.Join(dir, LearnedFile), int64(learnedHeader+maxID+8)+int64(of.pages())*evidenceSize)
	if err != nil {
		return nil, err
	}
	l, err := DecodeLearned(p, of)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, LearnedFile), err)
	}
	return l, nil
}

// SaveLearned puts it into a snapshot's directory, in place of what was there.
func SaveLearned(dir string, l *Learned) error {
	p, err := EncodeLearned(l)
	if err != nil {
		return fmt.Errorf("saving what was learned: %w", err)
	}
	return atomicfile.WriteUnsynced(filepath.Join(dir, LearnedFile), p, 0o600)
}

// Find returns what is known of a page, and whether there is anything.
func (l *Learned) Find(page uint32) (Evidence, bool) {
	i, ok := slices.BinarySearchFunc(l.Pages, page, func(e Evidence, page uint32) int { return cmp.Compare(e.Page, page) })
	if !ok {
		return Evidence{Page: page}, false
	}
	return l.Pages[i], true
}
