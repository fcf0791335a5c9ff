package memory

import (
	"context"
	"errors"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// HoldTurns keeps every working set from being read until release is called.
func (t *Policies) HoldTurns(ctx context.Context) (release func(), err error) {
	if err := t.turns.Acquire(ctx, streamTurns); err != nil {
		return nil, err
	}
	return func() { t.turns.Release(streamTurns) }, nil
}

// Buffers is how many of the shared buffers are in use, and how many readers
// wait for one.
func (t *Policies) Buffers() (used, waiting int) {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	return t.pool.used, len(t.pool.waiting)
}

// HoldReads keeps every read that would wait for the disk from being done, though
// it may be under way, until release is called.
func (t *Policies) HoldReads() (release func()) {
	for range cap(t.slots) {
		t.slots <- struct{}{}
	}
	return func() {
		for range cap(t.slots) {
			<-t.slots
		}
	}
}

// Issued is how many runs of its plan a session knows to be read or to have come.
func Issued(s Session) int { return int(s.(*session).server.issued.Load()) }

// AwaitRead waits until all that a session prefetches has been read.
func AwaitRead(ctx context.Context, s Session) error {
	for s.(*session).count.fetch.Load() == 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// FirstTurn serves a guest, one of whose threads waits for a page, for one turn
// of the server's loop, and says what came of it. The session serves it no further.
func FirstTurn(s Session, g userfaultfd.Guest) (faults, prefetched int64, err error) {
	server := s.(*session).server
	if ready, err := g.FD.Poll(20 * time.Second); err != nil || !ready {
		return 0, 0, errors.Join(errors.New("no fault came"), err)
	}
	server.guest, server.buf = g, make([]byte, pageSize)
	err = server.turn()
	return server.counter.faults.Load(), server.counter.prefetched.Load(), err
}
