package memory

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// bufferSize is the size of every buffer of the pool, in bytes. It is a
// multiple of what O_DIRECT wants on any disk.
const bufferSize = 1 << 20

// pool holds the buffers through which snapshots reach guests. They are outside
// the Go heap, page-aligned, and faulted in before first use. All sessions share
// it, and its bound is the bound of what prefetching may hold in memory.
type pool struct {
	limit int64 // buffers
	sem   *semaphore.Weighted
	keep  int // idle buffers that stay mapped

	mu     sync.Mutex
	idle   []*buffer // guarded by mu
	mapped int       // guarded by mu
}

// buffer is a piece of the pool, given back when the last reference is dropped.
type buffer struct {
	pool *pool
	mem  []byte
	refs atomic.Int32
}

func newPool(bytes int64) *pool {
	n := max(bytes/bufferSize, 4)
	return &pool{limit: n, sem: semaphore.NewWeighted(n), keep: int(min(n, 64))}
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
		p.mu.Unlock()
		b.refs.Store(1)
		return b, nil
	}
	p.mu.Unlock()
	mem, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mapping a buffer: %w", err)
	}
	p.mu.Lock()
	p.mapped++
	p.mu.Unlock()
	b := &buffer{pool: p, mem: mem}
	b.refs.Store(1)
	return b, nil
}

func (b *buffer) ref() { b.refs.Add(1) }

func (b *buffer) unref() {
	if b.refs.Add(-1) > 0 {
		return
	}
	p := b.pool
	p.mu.Lock()
	if len(p.idle) < p.keep {
		p.idle = append(p.idle, b)
		p.mu.Unlock()
	} else {
		p.mapped--
		p.mu.Unlock()
		_ = unix.Munmap(b.mem)
	}
	p.sem.Release(1)
}

// close gives the idle buffers back to the system.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.idle {
		_ = unix.Munmap(b.mem)
	}
	p.mapped -= len(p.idle)
	p.idle, p.keep = nil, 0
}
