package node

import (
	"context"
	"sync"
)

// keyedLock is a mutex per name, which can be waited for with a context.
type keyedLock struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// lock waits for the name and returns the function that gives it back.
func (k *keyedLock) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		other, taken := k.held[name]
		if !taken {
			mine := make(chan struct{})
			k.held[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
