package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/remote"
)

// Filling what the store gives nothing for is tried again after a time that doubles from arrivalRetry to
// arrivalMost.
const (
	arrivalRetry = time.Second
	arrivalMost  = time.Minute
)

// coming is a file that is on its way from the object store and is read meanwhile: a snapshot's memory, or a
// root disk.
type coming struct {
	n      *Node
	what   []any            // for the log
	file   *os.File         // what is here of it
	blocks *remote.Arriving // what fills that

	mu    sync.Mutex
	stuck error // guarded by mu: why nothing should start from it: for now, where the store does not answer
	users int   // guarded by mu: who fills it and the guests, of whom the last closes the file
}

// bring returns when a piece is here.
func (c *coming) bring(ctx context.Context, off, length int64) error {
	err := c.blocks.Bring(ctx, off, length)
	if err == nil {
		return nil
	}
	if ctx.Err() == nil { // else its reader has ended
		c.fail(err)
	}
	return fmt.Errorf("from the object store: %w", err)
}

// fill fetches until all is here, or what the store has is of no use.
func (c *coming) fill(ctx context.Context) error {
	for wait := arrivalRetry; ; wait = min(2*wait, arrivalMost) {
		var came atomic.Bool
		err := c.blocks.Fill(ctx, func() {
			came.Store(true)
			c.goesOn()
		})
		if came.Load() {
			wait = arrivalRetry
		}
		if !errors.Is(err, remote.ErrUnavailable) || ctx.Err() != nil {
			return cause.Because(ctx, err)
		}
		c.fail(err)
		c.n.log.With(c.what...).Warn("fetching the rest of what is arriving", "error", err, "retry_in", wait.String())
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// fail has nothing start from it any more: until the store gives something again, where that was not to be reached.
func (c *coming) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stuck == nil || errors.Is(c.stuck, remote.ErrUnavailable) {
		c.stuck = err
	}
}

func (c *coming) goesOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.stuck, remote.ErrUnavailable) {
		c.stuck = nil
	}
}

func (c *coming) isStuck() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stuck
}

// join and leave count who may still read the file, or put something into it. False: it is closed.
func (c *coming) join() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == 0 {
		return false
	}
	c.users++
	return true
}

func (c *coming) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users == 0 {
		_ = c.file.Close() // what was written is synced before it counts
	}
}
