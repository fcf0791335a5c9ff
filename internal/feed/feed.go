// Package feed has a bounded stream of items that any number of readers follow. Who
// publishes never waits for who reads: a reader that falls further behind than the
// feed remembers is told that it has lost items, and goes on at the end. Package node
// tells what happens through one.
package feed

import (
	"context"
	"errors"
	"sync"
)

// ErrLost is what a reader gets once, in place of items that the feed has forgotten. It
// goes on with those that come after.
var ErrLost = errors.New("items were lost: the reader was too slow")

// Feed remembers the newest items. Its methods may be called from many goroutines.
type Feed[T any] struct {
	mu    sync.Mutex // guards what follows
	items []T        // item i is at i modulo the length
	next  uint64     // number of the next item, from 1
	wake  chan struct{}
}

// New returns a feed that remembers size items, at least one.
func New[T any](size int) *Feed[T] {
	return &Feed[T]{items: make([]T, max(size, 1)), next: 1}
}

// Publish adds an item and returns its number, which is one more than the last one's.
func (f *Feed[T]) Publish(item T) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.next
	f.items[n%uint64(len(f.items))] = item
	f.next++
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
	return n
}

// Last is the number of the newest item, 0 when there was none.
func (f *Feed[T]) Last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.next - 1
}

// holds says whether item n is remembered, or the next to come. The mutex is held.
func (f *Feed[T]) holds(n uint64) bool {
	return n <= f.next && n+uint64(len(f.items)) >= f.next && n > 0
}

// After returns a reader of the items after that number. ok is false when some of those
// are forgotten, or the number has not been reached yet; the reader is then at the end.
func (f *Feed[T]) After(n uint64) (r *Reader[T], ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n+1 == 0 || !f.holds(n+1) {
		return &Reader[T]{f, f.next}, false
	}
	return &Reader[T]{f, n + 1}, true
}

// Reader reads a feed. It is for one goroutine, and needs no closing.
type Reader[T any] struct {
	feed *Feed[T]
	at   uint64 // number of the item to read next
}

// Last is the number of the item that was read last, or that the reader began after.
func (r *Reader[T]) Last() uint64 { return r.at - 1 }

// Next returns the next item, for which it waits until ctx ends; then the error is
// ctx's cause, and no item is lost. The error is ErrLost when items were.
func (r *Reader[T]) Next(ctx context.Context) (T, error) {
	for {
		item, wake, err := r.take()
		if wake == nil {
			return item, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return item, context.Cause(ctx)
		}
	}
}

// take returns the next item, or what is closed when there is one.
func (r *Reader[T]) take() (item T, wake <-chan struct{}, err error) {
	f := r.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.holds(r.at) {
		r.at = f.next
		return item, nil, ErrLost
	}
	if r.at < f.next {
		item = f.items[r.at%uint64(len(f.items))]
		r.at++
		return item, nil, nil
	}
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	return item, f.wake, nil
}
