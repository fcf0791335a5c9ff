package memory

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// backing is the memory file of a snapshot, open for one session. It is only
// ever read with pread: a file that is cut short or fails gives an error, where
// a mapping would raise SIGBUS and take the daemon down.
type backing struct {
	file  *os.File
	fd    int
	pages uint32
	data  bitmap // pages that are not holes; shared and read-only
	slots chan struct{}
}

// openBacking opens the memory file and checks its size.
func openBacking(src Source, maps *holeMaps, slots chan struct{}) (*backing, error) {
	if src.Size <= 0 || src.Size%pageSize != 0 || src.Size/pageSize > 1<<32-1 {
		return nil, fmt.Errorf("guest memory of %d bytes: want a multiple of %d", src.Size, pageSize)
	}
	f, err := os.Open(src.Path)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot's memory: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != src.Size {
		err = fmt.Errorf("%w: %s has %d bytes, the snapshot's memory %d: it was cut short or replaced; the snapshot is no longer usable", ErrRead, src.Path, st.Size(), src.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	b := &backing{file: f, fd: int(f.Fd()), pages: uint32(src.Size / pageSize), slots: slots}
	if b.data, err = maps.get(f, src.Size); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

func (b *backing) close() { b.file.Close() }

// ErrRead is wrapped by the failure of a session that could not read the
// snapshot's memory: nothing else that goes wrong is the snapshot's doing.
var ErrRead = errors.New("the snapshot's memory cannot be read")

// errShort is a memory file that ends before the guest's memory does.
var errShort = errors.New("the memory file ends early: it was cut short while in use")

// read fills p, whole pages, from page first of the memory file. What the page
// cache has is read at once; only a read that must wait for the disk takes one
// of the slots that bound the threads waiting in the kernel.
func (b *backing) read(p []byte, first uint32) error {
	off := int64(first) * pageSize
	n, err := preadNoWait(b.fd, p, off)
	if err == nil && n == len(p) {
		return nil
	}
	b.slots <- struct{}{}
	defer func() { <-b.slots }()
	return readFull(b.fd, p, off)
}

func readFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("%w: %w", ErrRead, os.NewSyscallError("pread", err))
		case n == 0:
			return fmt.Errorf("%w: %w", ErrRead, errShort)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
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

func (h *holeMaps) get(f *os.File, size int64) (bitmap, error) {
	id, err := identify(f)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	m, ok := h.maps[id]
	h.mu.Unlock()
	if ok {
		return m, nil
	}
	m, err = dataPages(f, size)
	if err != nil {
		return nil, fmt.Errorf("looking for holes in %s: %w", f.Name(), err)
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

// dataPages asks the file system which pages are not holes. One that does not
// know says that all is data.
func dataPages(f *os.File, size int64) (bitmap, error) {
	m := newBitmap(int(size / pageSize))
	for off := int64(0); off < size; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // holes up to the end
		}
		if err != nil {
			return nil, err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if end <= start {
			return nil, io.ErrUnexpectedEOF
		}
		end = min(end, size)
		m.setRange(uint32(start/pageSize), uint32((end+pageSize-1)/pageSize))
		off = end
	}
	return m, nil
}
