package agent

import (
	"sync"

	"github.com/skep-dev/skep/guest"
)

// outputLimit bounds what waits for the host, in bytes. Beyond it the oldest is
// dropped and counted, so that a function never waits long for its log.
const outputLimit = 256 << 10

// chunk is something to tell the host: output, a count of dropped bytes, or,
// when it is empty, that the function's state has changed.
type chunk struct {
	kind    guest.Kind
	data    []byte
	dropped int64
}

// output is what the host has not been told yet.
type output struct {
	mu      sync.Mutex // guards all below
	chunks  []chunk
	bytes   int
	dropped int64
	changed bool
	held    <-chan struct{} // of the link that gets nothing more
	signal  chan struct{}   // capacity 1: there is something
	empty   chan struct{}   // closed and renewed when everything is handed out
}

func newOutput() *output {
	return &output{signal: make(chan struct{}, 1), empty: make(chan struct{})}
}

func (o *output) wake() {
	select {
	case o.signal <- struct{}{}:
	default:
	}
}

// put adds a copy of data.
func (o *output) put(kind guest.Kind, data []byte) {
	o.mu.Lock()
	for len(o.chunks) > 0 && o.bytes+len(data) > outputLimit {
		n := len(o.chunks[0].data)
		o.chunks = o.chunks[1:]
		o.bytes -= n
		o.dropped += int64(n)
	}
	o.chunks = append(o.chunks, chunk{kind: kind, data: append([]byte(nil), data...)})
	o.bytes += len(data)
	o.mu.Unlock()
	o.wake()
}

// stateChanged makes next return an empty chunk once all output is out.
func (o *output) stateChanged() {
	o.mu.Lock()
	o.changed = true
	o.mu.Unlock()
	o.wake()
}

// next waits for something to tell, until end is closed.
func (o *output) next(end <-chan struct{}) (chunk, bool) {
	for {
		select {
		case <-end:
			o.wake() // for the link that replaces this one
			return chunk{}, false
		default:
		}
		if c, ok := o.take(end); ok {
			return c, true
		}
		select {
		case <-end:
			return chunk{}, false
		case <-o.signal:
		}
	}
}

func (o *output) take(end <-chan struct{}) (chunk, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.held == end:
		return chunk{}, false
	case o.dropped > 0:
		c := chunk{dropped: o.dropped}
		o.dropped = 0
		return c, true
	case len(o.chunks) > 0:
		c := o.chunks[0]
		o.chunks = o.chunks[1:]
		o.bytes -= len(c.data)
		return c, true
	case o.changed:
		o.changed = false
		return chunk{}, true
	}
	close(o.empty)
	o.empty = make(chan struct{})
	o.chunks = nil
	return chunk{}, false
}

// drained returns a channel that is closed when the link has asked for more and
// there was none: all that had been put is written to the connection.
func (o *output) drained() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.empty
	o.wake()
	return c
}

// hold keeps everything from the link whose end that is.
func (o *output) hold(end <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held = end
}
