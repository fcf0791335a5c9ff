package workingset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Names of the files in a snapshot's directory.
const (
	TraceFile   = "trace"
	SetFile     = "ws"
	LearnedFile = "learned"
)

const (
	version      = 1
	maxID        = 255
	maxMemory    = 1 << 43 // 8 TiB: page numbers and lengths of runs stay below 2^31
	zeroFlag     = 1 << 31
	traceHeader  = 32
	setHeader    = 64
	touchSize    = 16
	runSize      = 12
	setSumOffset = 56
	traceMagic   = "skeptrac"
	setMagic     = "skepwset"
	writeFlag    = 1
)

// BlockSize is the piece of a working set's contents that has a checksum of its
// own, in bytes: what has arrived can be verified and used before the rest has.
const BlockSize = 256 << 10

// ErrFormat is wrapped by every error about a file that is not what it should be.
var ErrFormat = errors.New("not usable")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// checksum is the ordinary CRC-32 (IEEE): with carry-less multiplication it
// runs at four times the speed of CRC-32C, and is on the way of every restore.
func checksum(p []byte) uint32 { return crc32.ChecksumIEEE(p) }

// Of names the snapshot that a file belongs to.
type Of struct {
	SnapshotID string
	MemorySize int64 // bytes
}

func (o Of) valid() error {
	if o.SnapshotID == "" || len(o.SnapshotID) > maxID {
		return fmt.Errorf("snapshot id of %d bytes: want 1 to %d", len(o.SnapshotID), maxID)
	}
	if o.MemorySize <= 0 || o.MemorySize%PageSize != 0 || o.MemorySize > maxMemory {
		return fmt.Errorf("guest memory of %d bytes: want a multiple of %d, at most %d", o.MemorySize, PageSize, int64(maxMemory))
	}
	return nil
}

func (o Of) pages() uint64 { return uint64(o.MemorySize / PageSize) }

func align(n, to int64) int64 { return (n + to - 1) / to * to }

var le = binary.LittleEndian

// checkCommon checks what all formats begin with.
func checkCommon(p []byte, magic string, header int, of Of) error {
	switch {
	case len(p) < header:
		return refuse("it has only %d bytes", len(p))
	case string(p[:8]) != magic:
		return refuse("it does not begin with %q", magic)
	case le.Uint32(p[8:]) != version:
		return refuse("version %d: this program reads version %d", le.Uint32(p[8:]), version)
	case le.Uint32(p[12:]) != PageSize:
		return refuse("pages of %d bytes", le.Uint32(p[12:]))
	case le.Uint64(p[16:]) != uint64(of.MemorySize):
		return refuse("it is of a guest with %d bytes of memory, not %d", le.Uint64(p[16:]), of.MemorySize)
	}
	return nil
}

func checkID(p []byte, length uint32, of Of) error {
	if length == 0 || length > maxID || int(length) > len(p) {
		return refuse("snapshot id of %d bytes", length)
	}
	if id := string(p[:length]); id != of.SnapshotID {
		return refuse("it belongs to snapshot %q", id)
	}
	return nil
}
