package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// The fields of a bzImage's setup header that lead to its payload (Linux,
// Documentation/arch/x86/boot.rst).
//
//	offset size
//	0x1f1  1     setup sectors; 0 means 4
//	0x202  4     "HdrS"
//	0x206  2     version of the boot protocol; 2.08 has the payload
//	0x248  4     payload's offset from the protected-mode code, which begins
//	             after the boot sector and the setup sectors
//	0x24c  4     payload's length, with 4 bytes of decompressed size at its end
const (
	setupSects    = 0x1f1
	setupMagic    = 0x202
	setupVersion  = 0x206
	payloadOffset = 0x248
	payloadLength = 0x24c
	setupEnd      = 0x250
	sector        = 512
)

// Bounds, in bytes.
const (
	imageLimit   = 128 << 20 // a kernel as it boots
	vmlinuxLimit = 512 << 20 // decompressed
	lz4Block     = 8 << 20   // of the legacy format, decompressed
)

var (
	elfMagic = []byte("\x7fELF")
	lz4Magic = []byte{0x02, 0x21, 0x4c, 0x18}
)

// errNotKernel says what is not one.
var errNotKernel = errors.New("neither a bzImage nor a vmlinux")

func isELF(image []byte) bool { return bytes.HasPrefix(image, elfMagic) }

func isBzImage(image []byte) bool {
	return len(image) >= setupEnd && string(image[setupMagic:setupMagic+4]) == "HdrS"
}

// extract returns the ELF kernel within a bzImage.
func extract(image []byte) ([]byte, error) {
	packed, err := payload(image)
	if err != nil {
		return nil, err
	}
	r, done, err := decompressor(packed)
	if err != nil {
		return nil, err
	}
	defer done()
	var out bytes.Buffer
	// The last four bytes of the payload say how much comes out; they are a
	// hint for the buffer, no more.
	if n := binary.LittleEndian.Uint32(packed[len(packed)-4:]); n <= vmlinuxLimit && int(n) <= 64*len(packed) {
		out.Grow(int(n) + bytes.MinRead)
	}
	if _, err := io.Copy(&out, io.LimitReader(r, vmlinuxLimit+1)); err != nil {
		return nil, fmt.Errorf("decompressing the kernel: %w", err)
	}
	switch {
	case out.Len() > vmlinuxLimit:
		return nil, fmt.Errorf("decompressing the kernel: it has more than %d bytes", vmlinuxLimit)
	case !isELF(out.Bytes()):
		return nil, errors.New("what the bzImage holds is no ELF file")
	}
	return out.Bytes(), nil
}

// payload returns the compressed kernel within a bzImage.
func payload(image []byte) ([]byte, error) {
	if !isBzImage(image) {
		return nil, errNotKernel
	}
	if v := binary.LittleEndian.Uint16(image[setupVersion:]); v < 0x0208 {
		return nil, fmt.Errorf("the bzImage speaks version %d.%02d of the boot protocol: 2.08 or newer is needed", v>>8, v&0xff)
	}
	sects := uint64(image[setupSects])
	if sects == 0 {
		sects = 4
	}
	begin := (sects+1)*sector + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if length < 16 || begin+length > uint64(len(image)) {
		return nil, fmt.Errorf("the bzImage announces %d bytes at %d, but has %d: it is truncated or damaged", length, begin, len(image))
	}
	return image[begin : begin+length], nil
}

// decompressor reads a payload by what it begins with. The size at its end is
// not part of any format but gzip's, which has it anyway.
func decompressor(packed []byte) (r io.Reader, done func(), err error) {
	done = func() {}
	body := packed[:len(packed)-4]
	switch {
	case bytes.HasPrefix(packed, lz4Magic):
		return &lz4Legacy{rest: body[4:]}, done, nil
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, nil, fmt.Errorf("decompressing the kernel: %w", err)
		}
		z.Multistream(false)
		return z, done, nil
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return nil, nil, fmt.Errorf("decompressing the kernel: %w", err)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(packed, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.ReaderConfig{SingleStream: true}.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, nil, fmt.Errorf("decompressing the kernel, which is packed with xz: %w; give its vmlinux instead", err)
		}
		return z, done, nil
	}
	return nil, nil, fmt.Errorf("the kernel is packed in a way that begins with % x: gzip, lz4, xz and zstd are known; give its vmlinux instead", packed[:4])
}

// lz4Legacy reads the format that the kernel's build uses: after the magic
// number, blocks of a 4-byte size and that many bytes, which come to at most
// 8 MiB each.
type lz4Legacy struct {
	rest  []byte
	block []byte // decompressed and not yet read
	buf   []byte
}

func (l *lz4Legacy) Read(p []byte) (int, error) {
	for len(l.block) == 0 {
		if len(l.rest) == 0 {
			return 0, io.EOF
		}
		if len(l.rest) < 4 {
			return 0, io.ErrUnexpectedEOF
		}
		size := binary.LittleEndian.Uint32(l.rest)
		if uint64(size) > uint64(len(l.rest)-4) {
			return 0, io.ErrUnexpectedEOF
		}
		if l.buf == nil {
			l.buf = make([]byte, lz4Block)
		}
		n, err := lz4.UncompressBlock(l.rest[4:4+size], l.buf)
		if err != nil {
			return 0, err
		}
		l.rest, l.block = l.rest[4+size:], l.buf[:n]
	}
	n := copy(p, l.block)
	l.block = l.block[n:]
	return n, nil
}
