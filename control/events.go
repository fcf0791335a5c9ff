package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	// eventsPause is after how long without an event a comment is sent, so that a
	// client that has gone is noticed, by both sides and by proxies between.
	eventsPause = 15 * time.Second
	// eventsWrite is for how long a client may take nothing before it is cut off.
	eventsWrite = 30 * time.Second
	// maxEventID bounds an event's id, in bytes.
	maxEventID = 64
)

// events answers with server-sent events until the client goes or the daemon ends.
// A client that comes back with the id of the last event that it got misses none that
// the node remembers.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	q, err := eventQuery(r)
	if err != nil {
		return err
	}
	ctx, cancel := s.untilClosed(r.Context())
	defer cancel()
	out := &eventWriter{w: w, rc: http.NewResponseController(w)}
	if err := out.begin(); err != nil {
		return nil // the client has gone
	}
	for events := s.o.Node.Events(q.After); ; {
		ev, err := nextEvent(ctx, events)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			err = out.send(": nothing happens\n\n")
		case err == nil && q.Selects(ev):
			err = out.event(ev)
		}
		if err != nil {
			return nil // the client has gone, or the daemon ends
		}
	}
}

// nextEvent fails with context.DeadlineExceeded when nothing happens for a while.
func nextEvent(ctx context.Context, events Events) (api.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, eventsPause)
	defer cancel()
	return events.Next(ctx)
}

// untilClosed derives a context that also ends when the daemon begins to.
func (s *Server) untilClosed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the request
		select {
		case <-s.o.Closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func eventQuery(r *http.Request) (api.EventQuery, error) {
	var out api.EventQuery
	q := r.URL.Query()
	out.Function, out.After = q.Get("function"), q.Get("after")
	if kinds := q.Get("kind"); kinds != "" {
		for _, k := range strings.Split(kinds, ",") {
			out.Kinds = append(out.Kinds, api.EventKind(k))
		}
	}
	// What a browser that comes back sends is newer than its page's address.
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		out.After = id
	}
	if len(out.After) > maxEventID {
		return out, badRequest("the id of an event has %d bytes: want at most %d", len(out.After), maxEventID)
	}
	if err := out.Validate(); err != nil {
		return out, badRequest("query: %v", err)
	}
	return out, nil
}

// eventWriter writes server-sent events, each at once.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (e *eventWriter) begin() error {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // for proxies that would hold them back
	e.w.WriteHeader(http.StatusOK)
	return e.rc.Flush()
}

// event sends one. JSON has no line ends in it, so that it is one line of data.
func (e *eventWriter) event(ev api.Event) error {
	b, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	return e.send(fmt.Sprintf("id: %s\nevent: %s\ndata: %s\n\n", ev.ID, ev.Kind, b))
}

func (e *eventWriter) send(text string) error {
	// A recorder in a test, which has no deadlines, takes everything.
	if err := e.rc.SetWriteDeadline(time.Now().Add(eventsWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := e.w.Write([]byte(text)); err != nil {
		return err
	}
	return e.rc.Flush()
}
