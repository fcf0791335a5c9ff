package guest

import (
	"fmt"
	"io"
	"sync"
)

// The agent sends no more of what a process writes than the host has room for, so that
// the host reads on while nobody takes it. What is left of a process that has ended
// comes at once.
const (
	OutputWindow = 128 << 10 // bytes of each of stdout and stderr
	MaxRest      = 4 << 20   // bytes of each beyond them, once it has ended
)

// outflow is one of a process's outputs on its way to who takes it.
type outflow struct {
	kind Kind
	to   io.Writer

	mu      sync.Mutex // guards what follows
	more    *sync.Cond // of any of it
	waiting []byte     // has come, and is not passed on
	held    int        // bytes of the window that are used
	over    bool       // no more comes
	err     error      // of to
}

func newOutflow(k Kind, to io.Writer) *outflow {
	if to == nil {
		to = io.Discard
	}
	o := &outflow{kind: k, to: to}
	o.more = sync.NewCond(&o.mu)
	return o
}

// add takes what has come.
func (o *outflow) add(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held += len(p); o.held > OutputWindow+MaxRest {
		return fmt.Errorf("%w: it sent %d bytes of output for which there was no room", ErrLost, o.held-OutputWindow)
	}
	if o.err == nil {
		o.waiting = append(o.waiting, p...)
		o.more.Broadcast()
	}
	return nil
}

// finish says that no more comes.
func (o *outflow) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.more.Broadcast()
}

func (o *outflow) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// pass writes all that comes until nothing does any more, and calls room when there is
// some for so many more bytes.
func (o *outflow) pass(room func(n int)) error {
	owed := 0
	for {
		p := o.next()
		if p == nil {
			return nil
		}
		if _, err := o.to.Write(p); err != nil {
			o.fail(err)
			return err
		}
		if owed += len(p); owed >= OutputWindow/2 {
			o.release(owed)
			room(owed)
			owed = 0
		}
	}
}

// next waits for what is to be passed on; nil: nothing is any more.
func (o *outflow) next() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) == 0 && !o.over {
		o.more.Wait()
	}
	n := min(len(o.waiting), MaxOutput)
	if n == 0 {
		return nil
	}
	p := o.waiting[:n]
	if o.waiting = o.waiting[n:]; len(o.waiting) == 0 {
		o.waiting = nil // a burst's memory is not kept
	}
	return p
}

// release gives a part of the window back, before the agent knows.
func (o *outflow) release(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held -= n
}

func (o *outflow) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.waiting = err, nil
}
