package memory

import "time"

// beside is what is installed beside the pages that a guest misses. An input
// larger than the recorded one takes memory by its neighbourhood, and a fault for
// each page of it would be most of what it costs.
//
// Zeros, where the guest takes memory that the snapshot holds nothing of: all of
// the block's, once it took one. A block is what one page table of the kernel's
// covers. This costs host memory for the table, which the first page took
// already, and none for the pages until the guest writes to them.
//
// Contents, where the guest comes back to memory that it used before its
// snapshot: all of the cluster's, once it missed two, read by one read. A single
// miss is more often than not alone.
type beside struct {
	blocks bitmap   // in the queue now, or were
	queue  []uint32 // blocks to be done when there is nothing better to do

	missed   bitmap // clusters that had a miss,
	finished bitmap // and those that were installed
}

const (
	// blockPages are 2 MiB: 45 µs to install, measured, where a fault costs the
	// guest 20 and more.
	blockPages = 512
	// clusterPages are 64 KiB, which is what the kernel maps around a fault on a
	// file.
	clusterPages = 16
)

func newBeside(pages uint32) *beside {
	clusters := int(pages+clusterPages-1) / clusterPages
	return &beside{blocks: newBitmap(int(pages+blockPages-1) / blockPages), missed: newBitmap(clusters), finished: newBitmap(clusters)}
}

// zeros queues the blocks of the pages [from, to), of which the guest has taken
// or is going to take zeros. It does nothing for a nil b.
func (b *beside) zeros(from, to uint32) {
	if b == nil {
		return
	}
	for i := from / blockPages; i*blockPages < to; i++ {
		if !b.blocks.has(i) {
			b.blocks.set(i)
			b.queue = append(b.queue, i)
		}
	}
}

// waits says that there are blocks to be done.
func (b *beside) waits() bool { return b != nil && len(b.queue) > 0 }

// second notes a miss in a cluster, and says whether it was not the first.
func (b *beside) second(cluster uint32) bool {
	if b.finished.has(cluster) {
		return false
	}
	if b.missed.has(cluster) {
		return true
	}
	b.missed.set(cluster)
	return false
}

// installBlock does the next block of zeros. Where the kernel wants events read
// first, the rest of it waits.
func (s *server) installBlock() error {
	start := time.Now()
	defer func() { s.counter.install.Add(int64(time.Since(start))) }()
	first := s.beside.queue[0] * blockPages
	zeros := func(page uint32) bool { return s.isZero(page) && s.lacks(page) }
	done, err := s.install(first, min(first+blockPages, s.back.pages), zeros, func(_, n uint32, addr uint64) (uint32, error) {
		bytes, err := s.zeroPages(addr, uint64(n)*pageSize)
		s.counter.zeroedAhead.Add(int64(bytes / pageSize))
		return uint32(bytes / pageSize), err
	})
	if done {
		s.beside.queue = s.beside.queue[1:]
	}
	return err
}

// unplanned says that a page is lacking and has contents which are not to come
// by themselves.
func (s *server) unplanned(page uint32) bool {
	return s.lacks(page) && !s.isZero(page) && (s.plan == nil || s.plan.find(page) == nil)
}

func (s *server) installedBeside(page, n uint32) {
	s.counter.prefetched.Add(int64(n))
	if s.rec != nil {
		for p := page; p < page+n; p++ {
			s.rec.beside(p)
		}
	}
}
