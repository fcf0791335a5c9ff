package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	pieceSize = 1 << 20
	pageSize  = 4096
)

var zeroPage [pageSize]byte

// zeroDigest is a piece's that has zeros only. Programs that hash nothing do without.
var zeroDigest = sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(make([]byte, pieceSize)) })

// digestFile returns the digest of a part (see Part.Digest) and its size. With
// punch it also turns the file's pages of zeros into holes, which leaves the
// content as it is. All cores take part; holes are not read.
func digestFile(ctx context.Context, f *os.File, punch bool) (string, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	size := info.Size()
	pieces := int((size + pieceSize - 1) / pieceSize)
	sums := make([]byte, pieces*sha256.Size)
	hasData, err := dataPieces(f, size, pieces)
	if err != nil {
		return "", 0, err
	}
	workers := min(runtime.GOMAXPROCS(0), max(1, pieces))
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for i := range pieces {
			if !hasData[i] && int64(i+1)*pieceSize <= size {
				zero := zeroDigest()
				copy(sums[i*sha256.Size:], zero[:])
				continue
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, pieceSize)
			for i := range next {
				if err := digestPiece(f, i, size, buf, sums, punch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", 0, fmt.Errorf("computing the digest of %s: %w", f.Name(), err)
	}
	sum := sha256.Sum256(sums)
	return hex.EncodeToString(sum[:]), size, nil
}

func digestPiece(f *os.File, i int, size int64, buf, sums []byte, punch bool) error {
	off := int64(i) * pieceSize
	b := buf[:min(pieceSize, size-off)]
	if n, err := f.ReadAt(b, off); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // it shrinks while we read
		}
		return err
	}
	sum := sha256.Sum256(b)
	copy(sums[i*sha256.Size:], sum[:])
	if punch {
		return punchZeros(f, off, b)
	}
	return nil
}

// dataPieces says which pieces hold any data, by the file system's own map of
// holes. A file system without one has data everywhere.
func dataPieces(f *os.File, size int64, pieces int) ([]bool, error) {
	has := make([]bool, pieces)
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			for i := range has {
				has[i] = true
			}
			return has, nil
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("looking for holes in %s: %w", f.Name(), err)
		}
		if end <= data {
			return nil, fmt.Errorf("looking for holes in %s: it changes meanwhile", f.Name())
		}
		for i := data / pieceSize; i < int64(pieces) && i*pieceSize < end; i++ {
			has[i] = true
		}
		off = end
	}
	return has, nil
}

// punchZeros makes holes of the runs of zero pages in b, which is at off of f.
func punchZeros(f *os.File, off int64, b []byte) error {
	for i := 0; i < len(b); {
		n := zeroRun(b[i:])
		if n == 0 {
			i += pageSize
			continue
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off+int64(i), int64(n))
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // this file system has no holes: only space is lost
		}
		if err != nil {
			return fmt.Errorf("punching a hole: %w", err)
		}
		i += n
	}
	return nil
}

// zeroRun returns how many bytes of whole zero pages b begins with.
func zeroRun(b []byte) int {
	n := 0
	for n+pageSize <= len(b) && bytes.Equal(b[n:n+pageSize], zeroPage[:]) {
		n += pageSize
	}
	return n
}
