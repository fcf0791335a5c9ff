package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/feed"
)

// eventsKept is how many events a node remembers for readers that are behind or
// come back.
const eventsKept = 4096

// bytesInterval is the least time between two events that only count a deployment's
// bytes.
const bytesInterval = 250 * time.Millisecond

// events are what happens in the node, told while it happens to whoever reads them.
// Telling waits for nobody; it may be done under a pool's mutex.
type events struct {
	epoch string // another in each life of the node, so that no id of an earlier one fits
	feed  *feed.Feed[api.Event]
}

func newEvents() *events {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return &events{epoch: hex.EncodeToString(b[:]), feed: feed.New[api.Event](eventsKept)}
}

func (e *events) tell(ev api.Event) {
	ev.Time = time.Now().UTC()
	e.feed.Publish(ev)
}

// id is that of the event with this number.
func (e *events) id(n uint64) string { return e.epoch + "-" + strconv.FormatUint(n, 10) }

// number is of the event with this id; false: it is not of this life of the node.
func (e *events) number(id string) (uint64, bool) {
	epoch, n, ok := strings.Cut(id, "-")
	if !ok || epoch != e.epoch {
		return 0, false
	}
	v, err := strconv.ParseUint(n, 10, 64)
	return v, err == nil
}

// EventReader reads the node's events. It is for one goroutine, and needs no closing.
type EventReader struct {
	n      *Node
	r      *feed.Reader[api.Event]
	resync string // why the next event is EventResync; "": it is not
}

// Events reads what happens from now on, or, after the event with that id, what has
// happened since. Unless it goes on there without a gap, an EventResync comes first.
func (n *Node) Events(after string) *EventReader {
	e := n.events
	if after == "" {
		r, _ := e.feed.After(e.feed.Last())
		return &EventReader{n, r, "the stream begins"}
	}
	number, ok := e.number(after)
	if !ok {
		r, _ := e.feed.After(e.feed.Last())
		return &EventReader{n, r, "the daemon was started anew"}
	}
	r, ok := e.feed.After(number)
	if !ok {
		return &EventReader{n, r, "events since then are forgotten"}
	}
	return &EventReader{n: n, r: r}
}

// Next returns the next event. It waits until ctx ends, and then returns its cause;
// reading goes on where it was after that.
func (r *EventReader) Next(ctx context.Context) (api.Event, error) {
	if r.resync != "" {
		return r.lost(), nil
	}
	ev, err := r.r.Next(ctx)
	if errors.Is(err, feed.ErrLost) {
		r.resync = "events came faster than they were read"
		return r.lost(), nil
	}
	if err != nil {
		return ev, err
	}
	ev.ID = r.n.events.id(r.r.Last())
	return ev, nil
}

func (r *EventReader) lost() api.Event {
	ev := api.Event{ID: r.n.events.id(r.r.Last()), Time: time.Now().UTC(), Kind: api.EventResync, Reason: r.resync}
	r.resync = ""
	return ev
}

// tell says that the instance is in another state; why is nil, or why it ends. The
// pool's mutex is held, or nobody else has the instance.
func (i *instance) tell(why error) {
	d := i.describe()
	ev := api.Event{Kind: api.EventInstance, Function: d.Function, Instance: &d}
	if why != nil {
		ev.Reason = why.Error()
	}
	i.pool.n.events.tell(ev)
}

// tellGone says that an instance which was in no pool, or never got to run there, is no
// more, and why.
func (i *instance) tellGone(why error) {
	d := i.describe()
	d.State = api.InstanceStopped
	ev := api.Event{Kind: api.EventInstance, Function: d.Function, Instance: &d}
	if why != nil && !errors.Is(why, context.Canceled) {
		ev.Reason = why.Error()
	}
	i.pool.n.events.tell(ev)
}

// tellPhase says that a phase of the instance's start is over.
func (i *instance) tellPhase(name string, took time.Duration) {
	i.pool.n.events.tell(api.Event{Kind: api.EventPhase, Function: i.pool.name, Phase: &api.StartPhase{Instance: i.id, Name: name, Took: took}})
}

// tellDeploy returns a progress function that tells what it is told to progress, which
// may be nil, and as events.
func (n *Node) tellDeploy(function string, progress func(api.DeployEvent)) func(api.DeployEvent) {
	var mu sync.Mutex
	var last api.DeployEvent
	var when time.Time // of last
	return func(e api.DeployEvent) {
		tell(progress, e)
		mu.Lock()
		defer mu.Unlock()
		more := e.Stage == last.Stage && e.Detail == last.Detail && e.Took == 0 && e.Done > 0 && e.Done < e.Total
		if more && time.Since(when) < bytesInterval {
			return
		}
		last, when = e, time.Now()
		if e.Function != nil {
			f := e.Function.Hide()
			e.Function = &f
		}
		n.events.tell(api.Event{Kind: api.EventDeploy, Function: function, Deploy: &e})
	}
}

func (n *Node) tellFunction(fn api.Function, change string) {
	fn = fn.Hide()
	n.events.tell(api.Event{Kind: api.EventFunction, Function: fn.Name, Settings: &fn, Reason: change})
}

func (n *Node) tellSnapshotGone(function, id string) {
	n.events.tell(api.Event{Kind: api.EventSnapshotRemoved, Function: function, Snapshot: &api.Snapshot{ID: id, Function: function}})
}
