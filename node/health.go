package node

import (
	"context"
	"fmt"
)

// Healthy reports why the node cannot work any more, if so: then starting the
// daemon anew is what is left to do. A node that drains is healthy.
func (n *Node) Healthy(ctx context.Context) error {
	if err := n.db.main.PingContext(ctx); err != nil {
		return fmt.Errorf("the node's database does not answer: %w", err)
	}
	return nil
}

// Ready reports why the node takes no requests, if so: it drains, or it is not
// healthy.
func (n *Node) Ready(ctx context.Context) error {
	select {
	case <-n.drain:
		return ErrDraining
	default:
		return n.Healthy(ctx)
	}
}
