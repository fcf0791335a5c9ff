package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skep-dev/skep/internal/sys"
)

// bufferSize is the size of every buffer of the pool, in bytes. It is a
// multiple of what O_DIRECT wants on any disk.
const bufferSize = 1 << 20

// slabBuffers is how many buffers are allocated together: they share one huge
// page, where the kernel gives one. The disk then gets its requests in large
// pieces instead of page by page, which here doubles its speed.
const slabBuffers = sys.HugePageSize / bufferSize

// keepIdle is how many idle buffers stay allocated for idleTime after the last
// use; keepAlways is how many stay for good.
const (
	keepIdle   = 128
	keepAlways = 8
	idleTime   = 10 * time.Second
)

// pool holds the buffers through which snapshots reach guests. They are outside
// the Go heap, aligned, and faulted in before first use. All sessions share it,
// and its bound is the bound of what prefetching may hold in memory.
type pool struct {
	limit int64 // buffers
	sem   *semaphore.Weighted

	mu    sync.Mutex
	idle  []*buffer   // guarded by mu; the last used last
	trim  *time.Timer // guarded by mu; nil before first use and after close
	close bool        // guarded by mu: nothing stays
}

// slab is a huge page's worth of buffers.
type slab struct {
	mem  []byte
	idle int // buffers of it that are idle; guarded by pool.mu
}

// buffer is a piece of the pool, given back when the last reference is dropped.
type buffer struct {
	pool *pool
	slab *slab
	mem  []byte
	refs atomic.Int32
}

func newPool(bytes int64) *pool {
	n := max(bytes/bufferSize, 4)
	return &pool{limit: n, sem: semaphore.NewWeighted(n)}
}

// get takes n buffers, waiting until the pool has them all.
func (p *pool) get(ctx context.Context, n int) ([]*buffer, error) {
	if int64(n) > p.limit {
		return nil, fmt.Errorf("%d MiB are more than the %d MiB that prefetching may use", n, p.limit)
	}
	if err := p.sem.Acquire(ctx, int64(n)); err != nil {
		return nil, err
	}
	bufs := make([]*buffer, 0, n)
	for range n {
		b, err := p.take()
		if err != nil {
			for _, b := range bufs {
				b.unref()
			}
			p.sem.Release(int64(n - len(bufs)))
			return nil, err
		}
		bufs = append(bufs, b)
	}
	return bufs, nil
}

func (p *pool) take() (*buffer, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		b := p.idle[n-1]
		p.idle = p.idle[:n-1]
		b.slab.idle--
		p.mu.Unlock()
		b.refs.Store(1)
		return b, nil
	}
	p.mu.Unlock()
	mem, err := sys.AllocHuge(1)
	if err != nil {
		return nil, fmt.Errorf("allocating buffers: %w", err)
	}
	s := &slab{mem: mem}
	first := s.buffer(p, 0)
	first.refs.Store(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := slabBuffers - 1; i > 0; i-- {
		p.idle = append(p.idle, s.buffer(p, i))
		s.idle++
	}
	return first, nil
}

func (s *slab) buffer(p *pool, i int) *buffer {
	return &buffer{pool: p, slab: s, mem: s.mem[i*bufferSize : (i+1)*bufferSize : (i+1)*bufferSize]}
}

func (b *buffer) ref() { b.refs.Add(1) }

func (b *buffer) unref() {
	if b.refs.Add(-1) > 0 {
		return
	}
	p := b.pool
	p.mu.Lock()
	b.slab.idle++
	p.idle = append(p.idle, b)
	switch {
	case p.close:
		p.shrink(0)
	case p.trim == nil:
		p.trim = time.AfterFunc(idleTime, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.shrink(keepAlways)
		})
	default:
		p.trim.Reset(idleTime)
		p.shrink(keepIdle)
	}
	p.mu.Unlock()
	p.sem.Release(1)
}

// shrink gives slabs that are wholly idle back to the system, the longest idle
// first, while more than keep buffers are idle. The caller holds p.mu.
func (p *pool) shrink(keep int) {
	if len(p.idle) <= keep {
		return
	}
	over := len(p.idle) - keep
	p.idle = slices.DeleteFunc(p.idle, func(b *buffer) bool {
		if b.slab.idle == slabBuffers && over > 0 {
			b.slab.idle = 0 // going: the other buffers of it follow below
			sys.FreeHuge(b.slab.mem)
			b.slab.mem = nil
			over -= slabBuffers
		}
		return b.slab.mem == nil
	})
}

// shut gives all idle buffers back; those in use follow when they are let go.
func (p *pool) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.close = true
	if p.trim != nil {
		p.trim.Stop()
	}
	p.shrink(0)
}
