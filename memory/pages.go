package memory

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pages is where a snapshot's guest memory comes from, open for one session: the
// snapshot's file, or what stands for it where that is not on this host. Its
// methods may be called from many goroutines, until Close.
//
// Errors end the guest, with their text as the reason. Those that wrap ErrRead
// say that the snapshot is to blame, so that it is looked at before its next use.
type Pages interface {
	// Data lists the pages that may be other than zeros, in ascending order. All others are zeros, and are
	// never asked for.
	Data() ([]Extent, error)
	// ReadNow fills p, a number of whole pages, from page first on, if that needs no
	// waiting; else it says false. It is called where a guest would wait for it.
	ReadNow(p []byte, first uint32) (bool, error)
	// Read does so, and may wait: until ctx ends, if it can.
	Read(ctx context.Context, p []byte, first uint32) error
	Close() error
}

// Extent is a piece of guest memory: so many pages from page First on.
type Extent struct{ First, Pages uint32 }

// filePages is the memory file of a snapshot. It is only
// ever read with pread: a file that is cut short or fails gives an error, where
// a mapping would raise SIGBUS and take the daemon down.
type filePages struct {
	file *os.File
	fd   int
	size int64
}

var _ Pages = (*filePages)(nil)

// OpenFile opens a snapshot's memory file of size bytes, for what stands for it while it is being filled.
func OpenFile(path string, size int64) (Pages, error) {
	f, err := openFile(Source{Path: path, Size: size})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openFile opens the memory file and checks its size.
func openFile(src Source) (*filePages, error) {
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
	return &filePages{f, int(f.Fd()), src.Size}, nil
}

func (f *filePages) Close() error { return f.file.Close() }

func (f *filePages) ReadNow(p []byte, first uint32) (bool, error) {
	n, err := unix.Preadv2(f.fd, [][]byte{p}, int64(first)*pageSize, unix.RWF_NOWAIT)
	return err == nil && n == len(p), nil // what fails fails again, for Read
}

func (f *filePages) Read(_ context.Context, p []byte, first uint32) error {
	for off := int64(first) * pageSize; len(p) > 0; {
		n, err := unix.Pread(f.fd, p, off)
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
