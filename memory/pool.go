package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
//
// Who has fewer buffers than are free may take one more: the dynamic threshold by
// which switches share their buffers among ports (Choudhury and Hahne, 1998). One
// reader alone gets half of the pool, two a third each; what is left is for those
// who come, so that the largest guest keeps nobody waiting for long. Buffers are
// taken one by one, and whoever holds some can do without more, so none waits for
// another that waits for it.
type pool struct {
	limit int // buffers
	keep  int // of them, that stay allocated for good

	mu      sync.Mutex
	used    int         // guarded by mu
	waiting []*waiter   // guarded by mu: in the order of arrival; none of them may have a buffer now
	idle    []*buffer   // guarded by mu; the last used last
	trim    *time.Timer // guarded by mu; nil before first use and after close
	close   bool        // guarded by mu: nothing stays
}

// share is what one reader has of the pool. The zero value has nothing.
type share struct {
	held int // buffers; guarded by pool.mu
}

// waiter is a reader that waits for one buffer.
type waiter struct {
	share   *share
	granted chan struct{} // closed when the buffer is counted as its
}

// slab is a huge page's worth of buffers.
type slab struct {
	mem  []byte
	idle int // buffers of it that are idle; guarded by pool.mu
}

// buffer is a piece of the pool, given back when the last reference is dropped.
type buffer struct {
	pool  *pool
	slab  *slab
	mem   []byte
	refs  atomic.Int32
	share *share // whom it is counted for; nil while it is idle
}

func newPool(bytes int64) *pool {
	return &pool{keep: keepAlways, limit: int(max(bytes/bufferSize, 4))}
}

// get takes a buffer, waiting for its turn.
func (p *pool) get(ctx context.Context, of *share) (*buffer, error) {
	p.mu.Lock()
	if p.grant(of) {
		p.mu.Unlock()
		return p.granted(of)
	}
	w := &waiter{share: of, granted: make(chan struct{})}
	p.waiting = append(p.waiting, w)
	p.mu.Unlock()
	select {
	case <-w.granted:
		return p.granted(of)
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else {
		p.giveBack(of) // it came at the same moment
	}
	return nil, fmt.Errorf("waiting for memory to read into: %w", context.Cause(ctx))
}

// try takes a buffer if one may be had at once, else nil.
func (p *pool) try(of *share) (*buffer, error) {
	p.mu.Lock()
	ok := p.grant(of)
	p.mu.Unlock()
	if !ok {
		return nil, nil
	}
	return p.granted(of)
}

// getSome takes at least one buffer, and as many more, up to n, as may be had at
// once.
func (p *pool) getSome(ctx context.Context, of *share, n int) ([]*buffer, error) {
	b, err := p.get(ctx, of)
	if err != nil {
		return nil, err
	}
	bufs := []*buffer{b}
	for len(bufs) < n {
		b, err := p.try(of)
		if b == nil || err != nil {
			break // what there is will do
		}
		bufs = append(bufs, b)
	}
	return bufs, nil
}

// grant counts one more buffer as a reader's, if it may have it. The caller
// holds p.mu, as in what follows.
func (p *pool) grant(of *share) bool {
	if of.held >= p.limit-p.used {
		return false
	}
	of.held++
	p.used++
	return true
}

// giveBack counts one less, and lets go on who may now.
func (p *pool) giveBack(of *share) {
	of.held--
	p.used--
	p.waiting = slices.DeleteFunc(p.waiting, func(w *waiter) bool {
		ok := p.grant(w.share)
		if ok {
			close(w.granted)
		}
		return ok
	})
}

// granted returns the buffer that grant has counted.
func (p *pool) granted(of *share) (*buffer, error) {
	b, err := p.take()
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.giveBack(of)
		return nil, err
	}
	b.share = of
	return b, nil
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
	of := b.share
	b.share = nil
	b.slab.idle++
	p.idle = append(p.idle, b)
	switch {
	case p.close:
		p.shrink(0)
	case p.trim == nil:
		p.trim = time.AfterFunc(idleTime, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.shrink(p.keep)
		})
	default:
		p.trim.Reset(idleTime)
		p.shrink(keepIdle)
	}
	p.giveBack(of)
	p.mu.Unlock()
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
