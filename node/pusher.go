package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/transfer/mark"
)

// Pushes that fail are tried again after a time that doubles from pushRetry up to pushMost; what
// there is to push is looked for every pushEvery, and when a snapshot was made.
const (
	pushRetry = 10 * time.Second
	pushMost  = 10 * time.Minute
	pushEvery = time.Minute
)

// pushSnapshots pushes the snapshots that functions start from, as they are made and again when they
// have got their working sets, until the node drains: what it has not done by then, the next does.
func (n *Node) pushSnapshots() {
	ctx, cancel := context.WithCancelCause(n.ctx)
	defer cancel(nil)
	defer n.whenDraining(func() { cancel(ErrDraining) })()
	wait := pushRetry
	for {
		next := pushEvery
		if err := n.pushMissing(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("pushing snapshots to the object store", "error", err, "retry_in", wait.String())
			next = wait/2 + rand.N(wait)
			wait = min(2*wait, pushMost)
		} else {
			wait = pushRetry
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-n.pushNow:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// pushSoon has the snapshots be looked through for what is to be pushed.
func (n *Node) pushSoon() {
	select {
	case n.pushNow <- struct{}{}:
	default:
	}
}

func (n *Node) pushMissing(ctx context.Context) error {
	var errs []error
	for _, name := range n.FunctionNames() {
		d := n.deployed(name)
		if d == nil {
			continue
		}
		ids, err := n.fitting(d)
		errs = append(errs, err)
		for _, id := range ids {
			dir, err := n.snaps.Dir(id)
			if err == nil && mark.Due(dir) {
				_, err = n.PushSnapshot(ctx, id, nil)
			}
			if err != nil && !errors.Is(err, snapshot.ErrNotFound) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
