package memory

import "context"

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
