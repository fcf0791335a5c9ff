package memory

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// sharedRead is one read of a working set from disk, for every session that opens
// while it is under way: twenty clones of one snapshot at once read it once.
type sharedRead struct {
	owner   *Policies
	id      fileID
	set     *setFile
	spans   []span
	starter *session // whom the bytes that are read are counted for
	shared  bool     // others may join; what has come is kept for them until the end
	cancel  context.CancelFunc
	ended   chan struct{}

	mu       sync.Mutex
	sessions map[*session]time.Time // guarded by mu: since when; a session leaves before it ends
	parts    []chunk                // guarded by mu: what has come, with a reference each
}

// maxSharedPart is the part of the pool that one read may keep for others.
const maxSharedPart = 4

// joinRead has a session get the contents of its working set, buffer by buffer, in
// order, from a read that is under way or from one that begins now. It takes
// over f.
func (o *Policies) joinRead(s *session, f *setFile) error {
	id, err := identify(f.file)
	if err != nil {
		f.close()
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if r := o.reads[id]; r != nil && r.join(s) {
		s.read = r
		f.close()
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	r := &sharedRead{
		owner: o, id: id, set: f, spans: s.server.plan.spans(bufferSize), starter: s, cancel: cancel, ended: make(chan struct{}),
		shared:   f.ContentBytes <= o.pool.limit*bufferSize/maxSharedPart,
		sessions: map[*session]time.Time{s: time.Now()},
	}
	s.read = r
	if r.shared {
		o.reads[id] = r
	}
	go r.run(ctx)
	return nil
}

// join gives a session what has come, and what will; false: all others have left.
func (r *sharedRead) join(s *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sessions) == 0 {
		return false
	}
	r.sessions[s] = time.Now()
	for _, c := range r.parts {
		r.give(s, c)
	}
	return true
}

// give hands a part to a session, with a reference of its own.
func (r *sharedRead) give(s *session, c chunk) {
	if c.buf != nil {
		c.buf.ref()
	}
	s.server.push(c)
}

// leave is called by every session once; the last waits for the end.
func (r *sharedRead) leave(s *session) {
	r.mu.Lock()
	delete(r.sessions, s)
	last := len(r.sessions) == 0
	r.mu.Unlock()
	if last {
		r.cancel()
		<-r.ended
	}
}

// run reads when its turn has come: reading few working sets at a time keeps the
// disk as busy as reading all of them, and the first are done sooner.
func (r *sharedRead) run(ctx context.Context) {
	defer close(r.ended)
	err := r.owner.turns.Acquire(ctx, 1)
	if err == nil {
		err = r.readParts(ctx)
		r.owner.turns.Release(1)
	}
	r.owner.mu.Lock()
	if r.owner.reads[r.id] == r {
		delete(r.owner.reads, r.id)
	}
	r.owner.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s, since := range r.sessions {
		s.count.fetch.Store(int64(time.Since(since)))
		s.notUsed(r.set, err)
	}
	for _, c := range r.parts {
		if c.buf != nil {
			c.buf.unref()
		}
	}
	r.parts = nil
	r.set.close()
}

// readParts reads all buffers, a few at a time. It returns the first error.
func (r *sharedRead) readParts(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(streamReaders, len(r.spans)) {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(r.spans) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := r.readPart(ctx, r.spans[i], int64(i)*bufferSize); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readPart reads and verifies one buffer of contents.
func (r *sharedRead) readPart(ctx context.Context, sp span, from int64) error {
	c := chunk{span: sp}
	if n := min(bufferSize, r.set.ContentBytes-from); n > 0 {
		bufs, err := r.owner.pool.get(ctx, 1)
		if err != nil {
			return err
		}
		c.buf, c.data = bufs[0], bufs[0].mem[:n]
		err = r.set.readVector([][]byte{c.data}, r.set.ContentOffset+from)
		if err == nil {
			err = r.set.Verify(c.data, from)
		}
		if err != nil {
			c.buf.unref()
			return err
		}
		r.starter.count.bytesRead.Add(n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		r.give(s, c)
	}
	if r.shared {
		r.parts = append(r.parts, c) // with the first reference
	} else if c.buf != nil {
		c.buf.unref()
	}
	return nil
}

// cached says that the page cache has all of a file: then reading past it costs
// more. A kernel that cannot say so is taken to have none of it.
func (f *setFile) cached() bool {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.file.Fd()), &unix.CachestatRange{}, &st, 0)
	return err == nil && int64(st.Cache)*pageSize >= f.Size()
}

// makeDirectUnlessCached makes reads by-pass the page cache where that has not
// everything.
func (f *setFile) makeDirectUnlessCached(s *session) {
	if !f.cached() {
		f.makeDirect(s)
	}
}
