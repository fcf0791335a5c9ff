package shim

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"
)

// events tells containerd what happens to the shim's microVMs, in its order.
// runc's service tells of its own.
type events struct {
	publisher shim.Publisher
	ctx       context.Context
	queue     chan any
	done      chan struct{}

	mu     sync.Mutex // guards closed, and sending against closing
	closed bool
}

func newEvents(ctx context.Context, p shim.Publisher) *events {
	e := &events{publisher: p, ctx: context.WithoutCancel(ctx), queue: make(chan any, 128), done: make(chan struct{})}
	go e.forward()
	return e
}

func (e *events) send(v any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.queue <- v
	}
}

func (e *events) forward() {
	defer close(e.done)
	for v := range e.queue {
		if err := e.publisher.Publish(e.ctx, runtime.GetTopic(v), v); err != nil {
			log.G(e.ctx).WithError(err).Errorf("telling containerd of %T", v)
		}
	}
}

// close returns when all has been told.
func (e *events) close() {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	e.mu.Unlock()
	if !was {
		close(e.queue)
		<-e.done
		_ = e.publisher.Close()
	}
}
