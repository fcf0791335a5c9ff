package memory

import "github.com/skep-dev/skep/memory/userfaultfd"

// empty says that the snapshot holds nothing for a block of blockPages, which is
// all there.
func (b *backing) empty(block uint32) bool {
	first := block * blockPages
	if first+blockPages > b.pages {
		return false
	}
	for _, w := range b.data[first/64 : (first+blockPages)/64] {
		if w != 0 {
			return false
		}
	}
	return true
}

// leaveHoles has the kernel answer faults itself where the snapshot holds nothing for
// a block and more: by zeros, without an event, and where the VMM has advised huge
// pages by one of those. Nothing is installed there from then on, and what the guest
// gives back is zeros again without being told of.
//
// Where the kernel will not, faults go on to be served.
func (s *server) leaveHoles() {
	for _, r := range s.guest.Regions {
		blocks := uint32((r.Offset + r.Size) / (blockPages * pageSize))
		for from := uint32((r.Offset + blockPages*pageSize - 1) / (blockPages * pageSize)); from < blocks; from++ {
			to := from
			for to < blocks && s.back.empty(to) {
				to++
			}
			if to > from && !s.leave(r, from*blockPages, to*blockPages) {
				return
			}
			from = to
		}
	}
}

// leave leaves the pages [from, to) of a region to the kernel.
func (s *server) leave(r userfaultfd.Region, from, to uint32) bool {
	addr := r.HostAddr + uint64(from)*pageSize - r.Offset
	if err := s.guest.FD.Unregister(addr, uint64(to-from)*pageSize); err != nil {
		return false
	}
	s.left.setRange(from, to)
	return true
}
