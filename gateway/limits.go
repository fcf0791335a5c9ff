package gateway

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	// lookEvery is how often an exchange under way is looked at, and endingIdle how
	// long a client that does not read or send keeps an instance which is to end.
	lookEvery  = time.Second
	endingIdle = 2 * time.Second
	// What the end of an exchange may take that no instance waits for any more:
	// the last bytes of the answer, and what is left of the request.
	lastWrite, lastRead = 30 * time.Second, 5 * time.Second
)

// cut is why the gateway ended an exchange before the function did.
type cut struct {
	failure api.Failure
	status  int // where the answer has not begun
	what    string
}

func (c *cut) Error() string { return c.what }

// stage is where an exchange is.
type stage int

const (
	queued    stage = iota // it has no instance
	sending                // its request is on the way to the function
	awaiting               // all of it is there, and nothing has come back
	answering              // the header of the response is there
)

// limits end an exchange that takes too long. They tell by what is waited for
// whose doing it is, and free who waits.
type limits struct {
	of     api.Limits
	began  time.Time
	end    func(*cut) // ends the exchange's context
	client *http.ResponseController

	moved   atomic.Int64 // when a byte last did, in nanoseconds since began
	writing atomic.Bool  // to the client, now
	reading atomic.Bool  // from the client, now
	why     atomic.Pointer[cut]
	over    atomic.Bool // the client's connection belongs to the exchange no more

	mu     sync.Mutex // guards what follows, and calls of client's
	stage  stage
	stream bool
	total  *time.Timer     // nil: no limit
	step   *time.Timer     // of the stage
	look   *time.Timer     // nil: not yet
	ending <-chan struct{} // of the instance
}

// start begins with the wait for an instance; stream says that all of the
// exchange is known to be one.
func (l *limits) start(stream bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limitTotal(stream)
	l.step = time.AfterFunc(l.of.Queue, func() { l.passStage(queued, "queue_timeout", l.of.Queue) })
}

// limitTotal sets the limit of the whole exchange, which counts from its
// beginning. The mutex is held.
func (l *limits) limitTotal(stream bool) {
	l.stream = stream
	if l.total != nil {
		l.total.Stop()
		l.total = nil
	}
	name, d := "timeout", l.of.Total
	if stream {
		name, d = "stream_timeout", l.of.Stream
	}
	if d > 0 {
		l.total = time.AfterFunc(d-time.Since(l.began), func() { l.pass(name, d) })
	}
}

// lent: an instance is there, and the request is being sent to it.
func (l *limits) lent(ending <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step.Stop()
	l.stage, l.ending = sending, ending
	l.touch()
	if l.look == nil {
		l.look = time.AfterFunc(min(lookEvery, l.of.Idle), l.check)
	}
}

// again: that instance took no connection, and another is waited for.
func (l *limits) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage, l.ending = queued, nil
	l.step.Reset(l.of.Queue)
}

// sent: the function has all of the request.
func (l *limits) sent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stage != sending || l.over.Load() {
		return // it answered before it had all
	}
	l.stage = awaiting
	l.touch()
	l.step = time.AfterFunc(l.of.Response, func() { l.passStage(awaiting, "response_timeout", l.of.Response) })
}

// answered: the header of the response is there.
func (l *limits) answered(stream bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step.Stop()
	l.stage = answering
	l.touch()
	if stream != l.stream {
		l.limitTotal(stream)
	}
}

// touch is for each time that bytes have moved.
func (l *limits) touch() { l.moved.Store(int64(time.Since(l.began))) }

// check looks whether bytes still move.
func (l *limits) check() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over.Load() || l.why.Load() != nil {
		return
	}
	idle, next := time.Since(l.began)-time.Duration(l.moved.Load()), lookEvery
	if l.stage == sending || l.stage == answering {
		if idle >= l.of.Idle {
			l.cut(limit("idle_timeout", l.of.Idle))
			return
		}
		next = min(next, l.of.Idle-idle)
	}
	select {
	case <-l.ending:
		if idle >= endingIdle && (l.writing.Load() || l.reading.Load() && l.stage == sending) {
			l.cut(fmt.Sprintf("%v, and the instance is to end", endingIdle))
			return
		}
	default:
	}
	l.look.Reset(next)
}

// pass ends the exchange because a limit has passed.
func (l *limits) pass(name string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over.Load() {
		l.cut(limit(name, d))
	}
}

// passStage is pass for the limit of one stage. It does nothing when the exchange
// has got further at the very moment: nobody is to be blamed for the limit of
// another's part.
func (l *limits) passStage(s stage, name string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stage == s && !l.over.Load() {
		l.cut(limit(name, d))
	}
}

func limit(name string, d time.Duration) string { return fmt.Sprintf("the %s of %v", name, d) }

// cut ends the exchange. The mutex is held.
func (l *limits) cut(limit string) {
	c := &cut{api.FailureTimeout, http.StatusGatewayTimeout, ""}
	switch {
	case l.stage == queued:
		c.failure, c.what = api.FailureQueue, "no instance was free within "+limit
	case l.writing.Load():
		c.failure, c.what = api.FailureClient, "the client did not read the answer within "+limit
	case l.stage == answering && l.stream:
		// Either may be silent for as long as it likes, or go on for ever: nobody can
		// say that the instance did anything wrong.
		c.failure, c.what = api.FailureClient, "the stream was ended by "+limit
	case l.reading.Load(): // what it sends may be all that the function waits for
		c.failure, c.status, c.what = api.FailureClient, http.StatusRequestTimeout, "the client did not send all of its request within "+limit
	case l.stage == answering:
		c.what = "the answer was not complete within " + limit
	default:
		c.what = "no answer within " + limit
	}
	if !l.why.CompareAndSwap(nil, c) {
		return
	}
	l.end(c)
	// Only what waits now is woken: who begins to read or write after this sees
	// why first (see begin).
	if l.writing.Load() {
		l.client.SetWriteDeadline(past)
	}
	if l.reading.Load() {
		l.client.SetReadDeadline(past)
	}
}

// begin is called before a read from the client or a write to it, with
// l.reading or l.writing, which the caller sets to false in the end.
func (l *limits) begin(what *atomic.Bool) error {
	what.Store(true)
	if c := l.why.Load(); c != nil {
		return c
	}
	if l.over.Load() {
		return http.ErrHandlerTimeout
	}
	return nil
}

// stop is for when the function's part is over: nothing is limited any more but
// the end of what was begun.
func (l *limits) stop(halfRead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over.Store(true)
	for _, t := range []*time.Timer{l.total, l.step, l.look} {
		if t != nil {
			t.Stop()
		}
	}
	lastDeadlines(l.client, halfRead)
	if halfRead && l.why.Load() != nil {
		l.client.SetReadDeadline(past) // it has had its time
	}
}

// settle is for when all is recorded, and the handler is about to return. What sends the
// request to the function may still be reading it: net/http would end that read itself, take
// the deadline away for it, and wait without one for what the client has not sent.
func (l *limits) settle(body *requestBody) {
	if !body.halfRead() || l.client.SetReadDeadline(past) != nil {
		return
	}
	body.settle()
	if body.halfRead() && l.why.Load() == nil {
		l.client.SetReadDeadline(time.Now().Add(lastRead))
	}
}

// past is a deadline that wakes who waits.
var past = time.Unix(1, 0)

// lastDeadlines bounds what a server does once its handler has returned.
func lastDeadlines(client *http.ResponseController, halfRead bool) {
	now := time.Now()
	client.SetWriteDeadline(now.Add(lastWrite))
	if halfRead {
		client.SetReadDeadline(now.Add(lastRead))
	}
}
