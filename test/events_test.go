package test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestEvents watches a cold start as it happens, and the daemon die and come back.
func TestEvents(t *testing.T) {
	d := start(t)
	d.hello("hello", "--keep-alive", "1s")
	d.gone("hello")
	answered := make(chan answer, 1)
	var seen []api.Event
	err := d.client.Events(d.ctx(2*time.Minute), api.EventQuery{Function: "hello"}, func(ev api.Event) error {
		if seen = append(seen, ev); ev.Kind == api.EventResync {
			go func() { answered <- d.get("hello", "/") }()
		}
		if ev.Instance != nil && ev.Instance.State == api.InstanceStopped {
			return errHappened
		}
		return nil
	})
	if !errors.Is(err, errHappened) {
		t.Fatalf("%v after %+v", err, seen)
	}
	if a := <-answered; a.err != nil || a.status != 200 {
		t.Fatalf("the request: %+v", a)
	}
	var said []string
	var phases api.Phases
	var record *api.Invocation
	for _, ev := range seen {
		switch {
		case ev.Instance != nil:
			said = append(said, string(ev.Instance.State))
		case ev.Phase != nil:
			said = append(said, ev.Phase.Name)
			switch ev.Phase.Name {
			case "load":
				phases.Load = ev.Phase.Took
			case "clone":
				phases.Clone = ev.Phase.Took
			}
		case ev.Invocation != nil:
			record = ev.Invocation
		}
	}
	said = slices.DeleteFunc(said, func(s string) bool { return s == "slot" }) // not where a process waited
	want := []string{"starting", "spawn", "load", "install", "resume", "clone", "idle", "busy", "idle", "draining", "stopped"}
	if !slices.Equal(said, want) {
		t.Errorf("a cold start is told as %v, want %v", said, want)
	}
	if record == nil || record.Start != api.StartRestore || record.Phases.Load != phases.Load.Truncate(time.Microsecond) || record.Phases.Clone != phases.Clone.Truncate(time.Microsecond) {
		t.Errorf("record %+v, told load %v and clone %v", record, phases.Load, phases.Clone)
	}

	last := seen[len(seen)-1].ID
	d.kill()
	d.up()
	err = d.client.Events(d.ctx(time.Minute), api.EventQuery{After: last}, func(ev api.Event) error {
		if ev.Kind != api.EventResync || !strings.Contains(ev.Reason, "anew") {
			t.Errorf("of a daemon that came back: %+v", ev)
		}
		return errHappened
	})
	if !errors.Is(err, errHappened) {
		t.Error(err)
	}
	d.mustGet("hello", "/")
}
