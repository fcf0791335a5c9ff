package userfaultfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Kind is what an event tells of.
type Kind uint8

// Kinds of events.
const (
	KindFault  Kind = 0x12
	KindFork   Kind = 0x13
	KindRemap  Kind = 0x14
	KindRemove Kind = 0x15
	KindUnmap  Kind = 0x16
)

// FaultFlag says what kind of access faulted.
type FaultFlag uint64

// Flags of a fault.
const (
	FaultWrite        FaultFlag = 1 << 0 // it was a write
	FaultWriteProtect FaultFlag = 1 << 1 // the page is there, write-protected
	FaultMinor        FaultFlag = 1 << 2 // the page cache has the page
)

// Event is one message of the kernel.
type Event struct {
	Kind Kind
	// Fault: where and how; Thread only with FeatureThreadID.
	Address uint64
	Flags   FaultFlag
	Thread  uint32
	// Remove, Unmap: the range [Start, End). Remap: from Start to End, Length bytes.
	Start, End, Length uint64
	// Fork: the child's userfaultfd, a descriptor of this process now.
	ForkFD int
}

const msgSize = 32

// MaxBatch is the largest number of events that one ReadEvents returns.
const MaxBatch = 64

// batch holds what one read needs, made once: the closure for the poller would
// otherwise be allocated by every call.
type batch struct {
	buf  [MaxBatch * msgSize]byte
	want int // bytes asked for
	n    int
	err  error
	read func(fd uintptr) bool
}

func (b *batch) init() {
	b.read = func(fd uintptr) bool {
		b.n, b.err = readRetry(int(fd), b.buf[:b.want])
		return b.err != syscall.EAGAIN
	}
}

func readRetry(fd int, p []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// ReadEvents waits until there are events and reads as many as fit into evs
// (at most MaxBatch) in one system call. It returns os.ErrDeadlineExceeded
// when SetReadDeadline said so and os.ErrClosed after Close. One goroutine at a
// time may call ReadEvents and TryReadEvents.
//
// The kernel delivers pending faults before other events, however they
// happened: apply what removes memory in a batch before answering its faults.
func (f *FD) ReadEvents(evs []Event) (int, error) {
	if f.raw == nil {
		return 0, errNotNegotiated
	}
	b := &f.batch
	b.want = min(len(evs), MaxBatch) * msgSize
	if err := f.raw.Read(b.read); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && !f.closed() {
			return 0, os.ErrDeadlineExceeded
		}
		if f.closed() || errors.Is(err, os.ErrClosed) {
			return 0, os.ErrClosed
		}
		return 0, fmt.Errorf("waiting for userfaultfd events: %w", err)
	}
	return b.decode(evs)
}

var errNotNegotiated = errors.New("reading userfaultfd events: the FD has not been through API")

// TryReadEvents is ReadEvents without waiting: 0 events when there are none.
func (f *FD) TryReadEvents(evs []Event) (int, error) {
	if !f.enter() {
		return 0, os.ErrClosed
	}
	b := &f.batch
	b.n, b.err = readRetry(int(f.n), b.buf[:min(len(evs), MaxBatch)*msgSize])
	f.leave()
	if b.err == syscall.EAGAIN {
		return 0, nil
	}
	return b.decode(evs)
}

func (b *batch) decode(evs []Event) (int, error) {
	if b.err != nil {
		return 0, os.NewSyscallError("reading userfaultfd events", b.err)
	}
	if b.n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return decodeEvents(b.buf[:b.n], evs)
}

// decodeEvents reads the kernel's messages of 32 bytes each:
// byte 0 event, 1..7 reserved, 8..31 its arguments.
func decodeEvents(p []byte, evs []Event) (int, error) {
	if len(p)%msgSize != 0 {
		return 0, fmt.Errorf("userfaultfd event of %d bytes: want a multiple of %d", len(p), msgSize)
	}
	n := 0
	for ; len(p) > 0 && n < len(evs); p = p[msgSize:] {
		a, b, c := binary.NativeEndian.Uint64(p[8:]), binary.NativeEndian.Uint64(p[16:]), binary.NativeEndian.Uint64(p[24:])
		ev := Event{Kind: Kind(p[0])}
		switch ev.Kind {
		case KindFault:
			ev.Flags, ev.Address, ev.Thread = FaultFlag(a), b, uint32(c)
		case KindFork:
			ev.ForkFD = int(uint32(a))
		case KindRemap:
			ev.Start, ev.End, ev.Length = a, b, c
		case KindRemove, KindUnmap:
			ev.Start, ev.End = a, b
		default:
			return n, fmt.Errorf("userfaultfd event %#x is not known", p[0])
		}
		evs[n] = ev
		n++
	}
	return n, nil
}
