package userfaultfd

import "os"

// Region is one piece of guest memory, mapped in the VMM's process.
type Region struct {
	HostAddr uint64 // virtual address in the VMM's process
	Size     uint64 // bytes, a multiple of PageSize
	Offset   uint64 // where it begins in the memory file
	PageSize uint64 // bytes: 4096 or 2 MiB
}

// Guest is the memory of a running VMM process, however its userfaultfd was
// come by: by injection (QEMU) or by a hand-over socket (Firecracker). The fd
// has been through UFFDIO_API and its regions are registered for missing pages.
type Guest struct {
	FD       *FD
	Regions  []Region
	PID      int
	Features uint64 // as UFFDIO_API negotiated them
	// Gone, when not nil, is a socket whose EOF means that the VMM has died.
	Gone *os.File
}
