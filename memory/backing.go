package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// backing is a snapshot's memory, open for one session.
type backing struct {
	from  Pages
	pages uint32
	data  bitmap // pages that are not holes; shared and read-only
	slots chan struct{}
}

// openBacking opens a snapshot's memory.
func openBacking(ctx context.Context, src Source, maps *holeMaps, slots chan struct{}) (*backing, error) {
	if src.Size <= 0 || src.Size%pageSize != 0 || src.Size/pageSize > 1<<32-1 {
		return nil, fmt.Errorf("guest memory of %d bytes: want a multiple of %d", src.Size, pageSize)
	}
	b := &backing{pages: uint32(src.Size / pageSize), slots: slots}
	var err error
	if src.Open == nil {
		err = b.openFile(src, maps)
	} else if b.from, err = src.Open(ctx); err == nil {
		err = b.findData()
	}
	if err != nil {
		if b.from != nil {
			b.from.Close()
		}
		return nil, err
	}
	return b, nil
}

func (b *backing) openFile(src Source, maps *holeMaps) error {
	f, err := openFile(src)
	if err != nil {
		return err
	}
	b.from = f
	b.data, err = maps.get(f)
	return err
}

// findData asks where there are other pages than zeros.
func (b *backing) findData() error {
	extents, err := b.from.Data()
	if err != nil {
		return fmt.Errorf("looking for holes in the snapshot's memory: %w", err)
	}
	b.data, err = pagesOf(extents, b.pages)
	return err
}

// pagesOf is the set of the pages of extents.
func pagesOf(extents []Extent, pages uint32) (bitmap, error) {
	m, end := newBitmap(int(pages)), uint64(0)
	for _, e := range extents {
		if uint64(e.First) < end || uint64(e.First)+uint64(e.Pages) > uint64(pages) {
			return nil, fmt.Errorf("the snapshot's memory has %d pages, and none from %d to %d after %d", pages, e.First, uint64(e.First)+uint64(e.Pages), end)
		}
		end = uint64(e.First) + uint64(e.Pages)
		m.setRange(e.First, uint32(end))
	}
	return m, nil
}

func (b *backing) close() { b.from.Close() }

// ErrRead is wrapped by the failure of a session that could not read the
// snapshot's memory: nothing else that goes wrong is the snapshot's doing.
var ErrRead = errors.New("the snapshot's memory cannot be read")

// errShort is a memory file that ends before the guest's memory does.
var errShort = errors.New("the memory file ends early: it was cut short while in use")

// read fills p, whole pages, from page first of the memory. What needs no waiting
// is read at once; only a read that must wait takes one
// of the slots that bound those.
func (b *backing) read(ctx context.Context, p []byte, first uint32) error {
	if ok, err := b.from.ReadNow(p, first); ok || err != nil {
		return err
	}
	return b.readWaiting(ctx, p, first)
}

func (b *backing) readWaiting(ctx context.Context, p []byte, first uint32) error {
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-b.slots }()
	return b.from.Read(ctx, p, first)
}

// holeMaps remembers which pages of memory files are data, by file identity:
// a snapshot is restored many times and its memory file never changes.
type holeMaps struct {
	mu   sync.Mutex
	maps map[fileID]bitmap // guarded by mu
}

type fileID struct {
	dev, ino    uint64
	size, mtime int64
}

// maxHoleMaps bounds what is remembered: 8 KiB for each 256 MiB of guest.
const maxHoleMaps = 1024

// identify returns the identity of a file that is open.
func identify(f *os.File) (fileID, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return fileID{}, fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	return fileID{uint64(s.Dev), s.Ino, s.Size, s.Mtim.Nano()}, nil
}

func (h *holeMaps) get(f *filePages) (bitmap, error) {
	id, err := identify(f.file)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	m, ok := h.maps[id]
	h.mu.Unlock()
	if ok {
		return m, nil
	}
	extents, err := f.Data()
	if err == nil {
		m, err = pagesOf(extents, uint32(f.size/pageSize))
	}
	if err != nil {
		return nil, fmt.Errorf("looking for holes in %s: %w", f.file.Name(), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.maps == nil {
		h.maps = make(map[fileID]bitmap)
	}
	for old := range h.maps {
		if len(h.maps) < maxHoleMaps {
			break
		}
		delete(h.maps, old)
	}
	h.maps[id] = m
	return m, nil
}

// Data asks the file system which pages are not holes. One that does not
// know says that all is data.
func (f *filePages) Data() ([]Extent, error) {
	var out []Extent
	for off := int64(0); off < f.size; {
		start, err := f.file.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // holes up to the end
		}
		if err != nil {
			return nil, err
		}
		end, err := f.file.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if end <= start {
			return nil, io.ErrUnexpectedEOF
		}
		off = min(end, f.size)
		first, after := uint32(start/pageSize), uint32((off+pageSize-1)/pageSize)
		if n := len(out); n > 0 && out[n-1].First+out[n-1].Pages > first { // file systems have smaller blocks
			first = out[n-1].First + out[n-1].Pages
		}
		out = append(out, Extent{first, after - first})
	}
	return out, nil
}
