package memory

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// flight is one read of a working set from disk, for every session that opens
// while it is under way: twenty clones of one snapshot at once read it once.
type flight struct {
	owner   *Policies
	id      fileID
	set     *setFile
	spans   []span
	starter *session // whom the bytes that are read are counted for
	shared  bool     // others may join; what has come is kept for them until the end
	cancel  context.CancelFunc
	ended   chan struct{}

	mu     sync.Mutex
	riders map[*session]time.Time // guarded by mu: since when; a session leaves before it ends
	parts  []chunk                // guarded by mu: what has come, with a reference each
}

// maxSharedPart is the part of the pool that one flight may keep for others.
const maxSharedPart = 4

// board has a session get the contents of its working set, buffer by buffer, in
// order, from a read that is under way or from one that begins now. It takes
// over f.
func (o *Policies) board(s *session, f *setFile) error {
	id, err := f.id()
	if err != nil {
		f.close()
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if fl := o.flights[id]; fl != nil && fl.join(s) {
		s.flight = fl
		f.close()
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	fl := &flight{
		owner: o, id: id, set: f, spans: s.server.plan.spans(bufferSize), starter: s, cancel: cancel, ended: make(chan struct{}),
		shared: f.ContentBytes <= o.pool.limit*bufferSize/maxSharedPart,
		riders: map[*session]time.Time{s: time.Now()},
	}
	s.flight = fl
	if fl.shared {
		o.flights[id] = fl
	}
	go fl.run(ctx)
	return nil
}

func (f *setFile) id() (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano()}, nil
}

// join gives a session what has come, and what will; false: all others have left.
func (fl *flight) join(s *session) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if len(fl.riders) == 0 {
		return false
	}
	fl.riders[s] = time.Now()
	for _, c := range fl.parts {
		fl.give(s, c)
	}
	return true
}

// give hands a part to a session, with a reference of its own.
func (fl *flight) give(s *session, c chunk) {
	if c.buf != nil {
		c.buf.ref()
	}
	s.server.push(c)
}

// leave is called by every session once; the last waits for the end.
func (fl *flight) leave(s *session) {
	fl.mu.Lock()
	delete(fl.riders, s)
	last := len(fl.riders) == 0
	fl.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.ended
	}
}

// run reads when its turn has come: reading few working sets at a time keeps the
// disk as busy as reading all of them, and the first are done sooner.
func (fl *flight) run(ctx context.Context) {
	defer close(fl.ended)
	err := fl.owner.turns.Acquire(ctx, 1)
	if err == nil {
		err = fl.readParts(ctx)
		fl.owner.turns.Release(1)
	}
	fl.owner.mu.Lock()
	if fl.owner.flights[fl.id] == fl {
		delete(fl.owner.flights, fl.id)
	}
	fl.owner.mu.Unlock()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for s, since := range fl.riders {
		s.count.fetch.Store(int64(time.Since(since)))
		s.notUsed(fl.set, err)
	}
	for _, c := range fl.parts {
		if c.buf != nil {
			c.buf.unref()
		}
	}
	fl.parts = nil
	fl.set.close()
}

// readParts reads all buffers, a few at a time. It returns the first error.
func (fl *flight) readParts(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(streamReaders, len(fl.spans)) {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(fl.spans) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := fl.readPart(ctx, fl.spans[i], int64(i)*bufferSize); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readPart reads and verifies one buffer of contents.
func (fl *flight) readPart(ctx context.Context, sp span, from int64) error {
	c := chunk{span: sp}
	if n := min(bufferSize, fl.set.ContentBytes-from); n > 0 {
		bufs, err := fl.owner.pool.get(ctx, 1)
		if err != nil {
			return err
		}
		c.buf, c.data = bufs[0], bufs[0].mem[:n]
		err = fl.set.readVector([][]byte{c.data}, fl.set.ContentOffset+from)
		if err == nil {
			err = fl.set.Verify(c.data, from)
		}
		if err != nil {
			c.buf.unref()
			return err
		}
		fl.starter.count.bytesRead.Add(n)
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for s := range fl.riders {
		fl.give(s, c)
	}
	if fl.shared {
		fl.parts = append(fl.parts, c) // with the first reference
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
