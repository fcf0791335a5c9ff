package node

import (
	"context"
	"fmt"
	"sync"
)

// Healthy reports why the node cannot work any more, if so: then starting the
// daemon anew is what is left to do. A node that drains is healthy. ctx bounds
// how long it may take to show that it is.
func (n *Node) Healthy(ctx context.Context) error {
	var some int
	if err := n.db.main.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM functions LIMIT 1)").Scan(&some); err != nil {
		return fmt.Errorf("the node's database does not answer: %w", err)
	}
	select {
	case <-n.alive.look(n):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the node is stuck: a lock of it could not be had: %w", context.Cause(ctx))
	}
}

// Ready reports why the node takes no requests, if so: it drains, it is not
// healthy, or its VMM cannot be run any more.
func (n *Node) Ready(ctx context.Context) error {
	select {
	case <-n.drain:
		return ErrDraining
	default:
	}
	if err := n.Healthy(ctx); err != nil {
		return err
	}
	if _, err := n.deps.VMM.Info(ctx); err != nil {
		return fmt.Errorf("the VMM cannot be used: %w", err)
	}
	return nil
}

// liveness looks whether the node's locks can be had. Of a node that is stuck it
// leaves one goroutine behind, however often it is asked.
type liveness struct {
	mu   sync.Mutex    // guards what follows
	seen chan struct{} // closed when the look that is under way has had every lock; nil: none is
}

func (l *liveness) look(n *Node) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen != nil {
		return l.seen
	}
	seen := make(chan struct{})
	l.seen = seen
	go func() {
		for _, p := range n.allPools() {
			p.mu.Lock()
			_ = p.closed
			p.mu.Unlock()
		}
		l.mu.Lock()
		l.seen = nil
		l.mu.Unlock()
		close(seen)
	}()
	return seen
}
