package image

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

// spool writes a layer, decompressed, to a file, and compares its digest with
// the one that the image's configuration gives: a truncated or altered layer
// ends here.
func spool(ctx context.Context, src source, l v1.Layer, diffID v1.Hash, path string, left *budget, count *counter) error {
	rc, err := src.read(l)
	if err != nil {
		return ofRegistry(err)
	}
	defer rc.Close()
	plain, err := decompress(bufio.NewReaderSize(&countingReader{ctx, rc, count}, 64<<10))
	if err != nil {
		return ofRegistry(fmt.Errorf("decompressing it: %w", err))
	}
	defer plain.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	holes := &sparseFile{ctx: ctx, f: f}
	if _, err := io.CopyBuffer(&budgetWriter{io.MultiWriter(holes, h), left}, struct{ io.Reader }{plain}, make([]byte, 256<<10)); err != nil {
		if src.remote && errors.Is(err, io.ErrUnexpectedEOF) {
			return as(ErrUnreachable, fmt.Errorf("reading it: the registry's answer broke off: %w", err))
		}
		return ofRegistry(fmt.Errorf("reading it: %w", err))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return as(ErrMalformed, fmt.Errorf("its content has digest sha256:%s, the image's configuration says %s", got, diffID))
	}
	return errors.Join(holes.finish(), f.Close())
}

// compression tells what the first bytes of a stream are compressed with; "" if
// with nothing that is known. A layer's media type is not always right.
func compression(head []byte) string {
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return "gzip"
	case len(head) >= 4 && string(head[:4]) == "\x28\xb5\x2f\xfd":
		return "zstd"
	}
	return ""
}

func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compression(head) {
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// budget is how many bytes are still allowed.
type budget struct {
	all  int64
	left atomic.Int64
}

func newBudget(n int64) *budget {
	b := &budget{all: n}
	b.left.Store(n)
	return b
}

func (b *budget) take(n int64) error {
	if b.left.Add(-n) < 0 {
		return as(ErrTooLarge, fmt.Errorf("the image is larger than the limit of %d bytes", b.all))
	}
	return nil
}

// budgetWriter ends with an error where the budget does.
type budgetWriter struct {
	w io.Writer
	b *budget
}

func (w *budgetWriter) Write(p []byte) (int, error) {
	if err := w.b.take(int64(len(p))); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// counter tells a Progress about bytes. Several layers count at once; it tells
// one after the other, and in rising order, so that a Progress needs no lock.
type counter struct {
	p     Progress
	stage string
	total int64

	mu   sync.Mutex
	done int64
}

// progressStep is how many bytes go between two tellings.
const progressStep = 256 << 10

func (c *counter) add(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
	done := c.done
	if done == n || done == c.total || done/progressStep != (done-n)/progressStep {
		c.p(c.stage, done, c.total)
	}
}

// countingReader ends with its context. c may be nil.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	c   *counter
}

func (r *countingReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if n > 0 && r.c != nil {
		r.c.add(int64(n))
	}
	return n, err
}

// skipper is a buffered reader of a file that can skip forward, so that reading
// the headers of an archive does not read the files in it.
type skipper struct {
	f   *os.File
	r   *bufio.Reader
	pos int64
}

func newSkipper(f *os.File) *skipper { return &skipper{f: f, r: bufio.NewReaderSize(f, 64<<10)} }

func (s *skipper) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.pos += int64(n)
	return n, err
}

// Seek moves forward from where it is; that is all that archive/tar does.
func (s *skipper) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, fmt.Errorf("seeking to %d from %d: %w", offset, whence, errors.ErrUnsupported)
	}
	if offset <= int64(s.r.Buffered()) {
		n, err := s.r.Discard(int(offset))
		s.pos += int64(n)
		return s.pos, err
	}
	s.pos += offset
	if _, err := s.f.Seek(s.pos, io.SeekStart); err != nil {
		return 0, err
	}
	s.r.Reset(s.f)
	return s.pos, nil
}
