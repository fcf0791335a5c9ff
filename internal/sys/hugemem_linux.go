package sys

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HugePageSize is the size of a huge page in bytes.
const HugePageSize = 2 << 20

// AllocHuge returns n huge pages of memory outside the Go heap, aligned and
// faulted in: buffers that a disk writes into and the kernel copies from. Where the kernel has no
// huge pages to give, the memory is of ordinary ones, and all else is the same.
func AllocHuge(n int) ([]byte, error) {
	size := n * HugePageSize
	// One more, so that an aligned piece is in it; the rest is given back.
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(size+HugePageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	head := (HugePageSize - uintptr(all)%HugePageSize) % HugePageSize
	start := unsafe.Add(all, head)
	if head > 0 {
		_ = unix.MunmapPtr(all, head)
	}
	if tail := HugePageSize - head; tail > 0 {
		_ = unix.MunmapPtr(unsafe.Add(start, size), tail)
	}
	// The mapping outlives this call, until FreeHuge; nothing else knows of it.
	mem := unsafe.Slice((*byte)(start), size)
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	if err := populate(mem); err != nil {
		FreeHuge(mem)
		return nil, err
	}
	return mem, nil
}

// populate faults the memory in.
func populate(mem []byte) error {
	err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINVAL) { // kernels before 5.14
		for i := 0; i < len(mem); i += os.Getpagesize() {
			mem[i] = 0
		}
		return nil
	}
	return os.NewSyscallError("madvise", err)
}

// FreeHuge gives back what AllocHuge returned.
func FreeHuge(mem []byte) {
	if len(mem) > 0 {
		_ = unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem)))
	}
}
