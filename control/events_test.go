package control_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

func TestEventsReachTheClient(t *testing.T) {
	n := controltest.New("hello")
	closing := make(chan struct{})
	c, _ := clientOf(t, control.Options{Node: n, Closing: closing})
	got := make(chan api.Event)
	done := make(chan error, 1)
	go func() {
		done <- c.Events(t.Context(), api.EventQuery{Function: "hello", Kinds: []api.EventKind{api.EventInstance, api.EventFunctionRemoved}},
			func(ev api.Event) error { got <- ev; return nil })
	}()
	if ev := <-got; ev.Kind != api.EventResync || ev.ID != "0" {
		t.Fatalf("first %+v", ev)
	}
	n.Happened.Publish(api.Event{Kind: api.EventInstance, Function: "other"})
	n.Happened.Publish(api.Event{Kind: api.EventPhase, Function: "hello"})
	n.Happened.Publish(api.Event{Kind: api.EventInstance, Function: "hello", Reason: "line\nend", Instance: &api.Instance{ID: "i1", State: api.InstanceBusy}})
	if ev := <-got; ev.Kind != api.EventInstance || ev.ID != "3" || ev.Reason != "line\nend" || ev.Instance.State != api.InstanceBusy {
		t.Errorf("then %+v", ev)
	}
	n.Happened.Publish(api.Event{Kind: api.EventFunctionRemoved, Function: "hello"})
	if ev := <-got; ev.ID != "4" {
		t.Errorf("then %+v", ev)
	}
	close(closing)
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("at the daemon's end: %v", err)
	}
}

func TestEventsGoOnAfterAnID(t *testing.T) {
	n := controltest.New()
	c, path := clientOf(t, control.Options{Node: n})
	for range 3 {
		n.Happened.Publish(api.Event{Kind: api.EventPhase})
	}
	stop := errors.New("enough")
	err := c.Events(t.Context(), api.EventQuery{After: "2"}, func(ev api.Event) error {
		if ev.ID != "3" || ev.Kind != api.EventPhase {
			t.Errorf("after 2 comes %+v", ev)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Events(ctx, api.EventQuery{}, func(api.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, query := range []string{"kind=none", "kind=phase,", "x=1", "after=" + strings.Repeat("1", 100)} {
		if code, body := request(t, path, http.MethodGet, "/v1/events?"+query, ""); code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, code, body)
		}
	}
}

// A browser that reconnects sends the id of the last event that it got.
func TestLastEventID(t *testing.T) {
	n := controltest.New()
	l := serveTCP(t, control.New(control.Options{Node: n}).Handler())
	n.Happened.Publish(api.Event{Kind: api.EventPhase})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l+"/v1/events?after=0", nil)
	req.Header.Set("Last-Event-ID", "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	n.Happened.Publish(api.Event{Kind: api.EventInstance})
	want := "id: 2\nevent: instance\ndata: {"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%q, %v, %v", got, err, resp.Header)
	}
}
