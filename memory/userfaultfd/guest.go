package userfaultfd

import (
	"errors"
	"fmt"
	"math"
	"os"
)

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

// Adopt makes a Guest of an FD that Start has made and the regions in which
// the VMM has mapped its memory: it negotiates the features that serving can
// use and this kernel has, and registers the regions for missing pages. The FD
// stays the caller's when Adopt fails.
func Adopt(fd *FD, pid int, regions []Region) (Guest, error) {
	if err := CheckRegions(regions); err != nil {
		return Guest{}, err
	}
	// A page that the VMM gives back (balloon) must read as zeros later, not as
	// the snapshot's old content: the event tells. Kernels without it are served
	// all the same, for VMMs without a balloon.
	features := FeatureEventRemove
	has, err := Probe()
	if err != nil {
		return Guest{}, err
	}
	features &= has
	if _, err := fd.API(features); err != nil {
		return Guest{}, err
	}
	for _, r := range regions {
		calls, err := fd.Register(r.HostAddr, r.Size, ModeMissing)
		if err != nil {
			return Guest{}, fmt.Errorf("registering %d MiB of guest memory at %#x of process %d: %w", r.Size>>20, r.HostAddr, pid, err)
		}
		if !calls.CanCopy() {
			return Guest{}, fmt.Errorf("guest memory at %#x of process %d: %w: its pages cannot be copied into", r.HostAddr, pid, ErrUnsupported)
		}
	}
	return Guest{FD: fd, Regions: regions, PID: pid, Features: uint64(features)}, nil
}

// maxRegions bounds what a VMM may hand over; real ones have one or two.
const maxRegions = 64

// CheckRegions reports the first thing wrong with the layout of guest memory:
// pages of an unknown size, an address that is not aligned, an overflow, an
// overlap in the process or in the memory file.
func CheckRegions(regions []Region) error {
	if len(regions) == 0 || len(regions) > maxRegions {
		return fmt.Errorf("guest memory of %d regions: want 1 to %d", len(regions), maxRegions)
	}
	for i, r := range regions {
		if err := r.check(); err != nil {
			return fmt.Errorf("guest memory region %d at %#x: %w", i, r.HostAddr, err)
		}
		for j, o := range regions[:i] {
			if r.HostAddr < o.HostAddr+o.Size && o.HostAddr < r.HostAddr+r.Size || r.Offset < o.Offset+o.Size && o.Offset < r.Offset+r.Size {
				return fmt.Errorf("guest memory region %d at %#x overlaps region %d", i, r.HostAddr, j)
			}
		}
	}
	return nil
}

func (r Region) check() error {
	switch {
	case r.PageSize != 4096 && r.PageSize != 2<<20:
		return fmt.Errorf("pages of %d bytes: want 4096 or 2 MiB", r.PageSize)
	case r.Size == 0:
		return errors.New("it is empty")
	case (r.HostAddr|r.Size|r.Offset)%r.PageSize != 0:
		return fmt.Errorf("address, size %d or offset %d is no multiple of the page size %d", r.Size, r.Offset, r.PageSize)
	case r.Size > math.MaxInt64, r.HostAddr > math.MaxUint64-r.Size, r.Offset > math.MaxInt64-r.Size:
		return fmt.Errorf("size %d at offset %d reaches beyond all memory", r.Size, r.Offset)
	}
	return nil
}
