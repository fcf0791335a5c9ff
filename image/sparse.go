package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// sparseFile writes a new file in which blocks of zeros are holes: files that
// were sparse before they got into a layer, and all others that hold long runs
// of zeros, take no room on the host.
type sparseFile struct {
	ctx  context.Context
	f    *os.File
	most int64 // bytes that it may have; 0: no limit

	pos int64 // where the next write goes
	end int64 // as far as it was written, holes among it
}

// holeBlock is the block of the file systems that images lie on, and a page.
const holeBlock = 4096

var zeros [holeBlock]byte

func (s *sparseFile) Write(p []byte) (n int, err error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if s.most > 0 && s.pos+int64(len(p)) > s.most {
		return 0, as(ErrTooLarge, fmt.Errorf("it would be larger than the limit of %d bytes", s.most))
	}
	for n < len(p) {
		run, hole := s.run(p[n:])
		if !hole {
			if _, err := s.f.WriteAt(p[n:n+run], s.pos); err != nil {
				return n, err
			}
		}
		n += run
		s.pos += int64(run)
		s.end = max(s.end, s.pos)
	}
	return n, nil
}

// run returns how many of the bytes are alike: blocks of zeros where nothing was
// written, or what has to be.
func (s *sparseFile) run(p []byte) (n int, hole bool) {
	for n < len(p) {
		size := min(len(p)-n, int(holeBlock-(s.pos+int64(n))%holeBlock))
		zero := size == holeBlock && s.pos+int64(n) >= s.end && bytes.Equal(p[n:n+size], zeros[:])
		if n > 0 && zero != hole {
			break
		}
		hole = zero
		n += size
	}
	return n, hole
}

// Read reads what was written.
func (s *sparseFile) Read(p []byte) (int, error) {
	if s.pos >= s.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.end-s.pos)]
	n, err := s.f.ReadAt(p, s.pos)
	if errors.Is(err, io.EOF) { // a hole at the end, which the file does not have yet
		clear(p[n:])
		n, err = len(p), nil
	}
	s.pos += int64(n)
	return n, err
}

func (s *sparseFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.end
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking to %d: %w", offset, os.ErrInvalid)
	}
	s.pos = offset
	return offset, nil
}

// finish gives the file its length.
func (s *sparseFile) finish() error { return s.f.Truncate(s.end) }
