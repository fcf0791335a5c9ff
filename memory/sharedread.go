package memory

import (
	"cmp"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// sharedRead is one read of a working set from disk, for every session that opens
// while it is under way: twenty clones of one snapshot at once read it once.
type sharedRead struct {
	owner   *Policies
	id      fileID
	set     *setFile
	parts   []part
	starter *session // whom the bytes that are read are counted for
	share   share    // of the buffers
	cancel  context.CancelFunc
	ended   chan struct{}

	mu       sync.Mutex
	sessions map[*session]time.Time // guarded by mu: since when; a session leaves before it ends
	shared   bool                   // guarded by mu: others may join; what has come is kept for them until the end
	arrived  []chunk                // guarded by mu: what has come, with a reference each
	issued   int                    // guarded by mu: runs that are being read or have come
}

// maxSharedPart is the part of the pool that one read may keep for others.
const maxSharedPart = 4

// readFor has a session get the contents of its working set once it prefetches.
// It takes over f.
func (o *Policies) readFor(s *session, f *setFile) {
	s.files = append(s.files, f)
	s.begin = func() {
		s.files = nil // the read's, or closed
		f.makeDirectUnlessCached(s)
		if err := o.joinRead(s, f); err != nil {
			s.notUsed(err)
		}
	}
}

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
		owner: o, id: id, set: f, parts: s.server.plan.parts(), starter: s, cancel: cancel, ended: make(chan struct{}),
		shared:   f.ContentBytes <= int64(o.pool.limit)*bufferSize/maxSharedPart,
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
	s.server.issued.Store(int32(r.issued))
	for _, c := range r.arrived {
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

// run reads everything, or as much as there are sessions for.
func (r *sharedRead) run(ctx context.Context) {
	defer close(r.ended)
	err := r.readParts(ctx)
	r.unshare() // from here on nobody takes r.mu while they hold the owner's
	r.mu.Lock()
	defer r.mu.Unlock()
	for s, since := range r.sessions {
		s.count.fetch.Store(int64(time.Since(since)))
		s.notUsed(err)
	}
	r.set.close()
}

// unshare lets nobody join any more, and lets go of what was kept for them.
func (r *sharedRead) unshare() {
	r.owner.mu.Lock()
	if r.owner.reads[r.id] == r {
		delete(r.owner.reads, r.id)
	}
	r.owner.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.arrived {
		if c.buf != nil {
			c.buf.unref()
		}
	}
	r.shared, r.arrived = false, nil
}

// readParts reads all buffers, a few at a time, when its turn has come: reading
// few working sets at a time keeps the disk as busy as reading all of them, and
// the first are done sooner. It returns the first error.
func (r *sharedRead) readParts(ctx context.Context) error {
	turn := turnAtDisk{of: r.owner.turns}
	if err := turn.take(ctx); err != nil {
		return err
	}
	defer turn.give()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(streamReaders)
	for _, p := range r.parts {
		if ctx.Err() != nil {
			break // a read failed, or all sessions have left
		}
		c := chunk{span: p.span}
		if err := turn.spend(ctx, p.bytes); err != nil {
			return cmp.Or(group.Wait(), err)
		}
		if p.bytes > 0 {
			b, err := r.buffer(ctx, &turn)
			if err != nil {
				return cmp.Or(group.Wait(), err) // a read that failed is why
			}
			c.buf, c.data = b, b.mem[:p.bytes]
		}
		r.issue(p.to)
		group.Go(func() error { return r.readPart(ctx, c, p.at) })
	}
	return group.Wait()
}

// issue tells the sessions that the runs before one are being read.
func (r *sharedRead) issue(to int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.issued = to
	for s := range r.sessions {
		s.server.issued.Store(int32(to))
	}
}

// buffer takes a buffer. Where it must wait for one, what is kept for others goes
// first, and the turn passes to a read that has its buffers.
func (r *sharedRead) buffer(ctx context.Context, turn *turnAtDisk) (*buffer, error) {
	b, err := r.owner.pool.try(&r.share)
	if b != nil || err != nil {
		return b, err
	}
	r.unshare()
	turn.give()
	if b, err = r.owner.pool.get(ctx, &r.share); err != nil {
		return nil, err
	}
	if err := turn.take(ctx); err != nil {
		b.unref()
		return nil, err
	}
	return b, nil
}

// turnBytes is how much is read in one turn, if others wait for theirs: more than most
// working sets have, so that few are cut into pieces, and a small part of the largest.
const turnBytes = 64 << 20

// turnAtDisk is one of the turns of reads, or none.
type turnAtDisk struct {
	of    *semaphore.Weighted
	have  bool
	spent int64 // bytes, in this turn
}

// spend reckons bytes that are read, and waits for the next turn where this one is used up: who reads
// the largest working set holds up who reads a small one by one turn, not by all of it.
func (t *turnAtDisk) spend(ctx context.Context, bytes int64) error {
	if t.spent += bytes; t.spent <= turnBytes {
		return nil
	}
	t.give()
	if err := t.take(ctx); err != nil {
		return err
	}
	t.spent = bytes
	return nil
}

func (t *turnAtDisk) take(ctx context.Context) error {
	err := t.of.Acquire(ctx, 1)
	t.have, t.spent = err == nil, 0
	return err
}

func (t *turnAtDisk) give() {
	if t.have {
		t.have = false
		t.of.Release(1)
	}
}

// readPart reads and verifies one buffer of contents, which it takes over.
func (r *sharedRead) readPart(ctx context.Context, c chunk, from int64) error {
	if c.buf != nil {
		err := r.owner.readVector(ctx, r.set, [][]byte{c.data}, r.set.ContentOffset+from)
		if err == nil {
			err = r.set.Verify(c.data, from)
		}
		if err != nil {
			c.buf.unref()
			return err
		}
		r.starter.count.bytesRead.Add(int64(len(c.data)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		r.give(s, c)
	}
	if r.shared {
		r.arrived = append(r.arrived, c) // with the first reference
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
