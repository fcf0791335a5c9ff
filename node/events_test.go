package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// heard reads events until one satisfies last.
func heard(t *testing.T, r *EventReader, last func(api.Event) bool) []api.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var out []api.Event
	for {
		ev, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("%v after %s", err, strings.Join(told(out), "\n"))
		}
		if out = append(out, ev); last(ev) {
			return out
		}
	}
}

// told is what events say, without what differs from run to run.
func told(evs []api.Event) []string {
	var out []string
	for _, ev := range evs {
		s := string(ev.Kind)
		switch {
		case ev.Instance != nil:
			s += " " + string(ev.Instance.State)
		case ev.Phase != nil:
			s += " " + ev.Phase.Name
		case ev.Deploy != nil:
			s += " " + string(ev.Deploy.Stage)
		case ev.Invocation != nil:
			s += fmt.Sprint(" ", ev.Invocation.Status)
		}
		if ev.Reason != "" {
			s += ": " + ev.Reason
		}
		out = append(out, s)
	}
	return out
}

func kind(k api.EventKind) func(api.Event) bool {
	return func(ev api.Event) bool { return ev.Kind == k }
}

func state(s api.InstanceState) func(api.Event) bool {
	return func(ev api.Event) bool { return ev.Instance != nil && ev.Instance.State == s }
}

// The life of a function is told step by step, in order, and no secret of it.
func TestEventsTellALife(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		r := n.Events("")
		deploy(t, n, hello(func(f *api.Function) { f.Env = map[string]string{"DB": "hunter2"} }))
		all := heard(t, r, func(ev api.Event) bool { return ev.Deploy != nil && ev.Deploy.Stage == api.StageDone })
		deployed := told(all)
		for _, want := range []string{"resync: the stream begins", "deploy pulling", "instance starting", "phase slot", "phase init", "deploy ready",
			"snapshot: ready", "instance stopped", "deploy checking", "phase clone", "function: deploy", "deploy done"} {
			i := slices.Index(deployed, want)
			if i < 0 {
				t.Fatalf("no %q, or not after what comes before it, in\n%s", want, strings.Join(deployed, "\n"))
			}
			deployed = deployed[i+1:]
		}

		l := acquire(t, n, AcquireOptions{Invocation: "first"})
		l.Release(api.Invocation{ID: "first", Status: 200})
		cold := heard(t, r, kind(api.EventInvocation))
		want := []string{"instance starting", "phase slot", "phase spawn", "phase load", "phase install", "phase resume", "phase clone", "instance idle", "instance busy", "instance idle", "invocation 200"}
		if got := told(cold); !slices.Equal(got, want) {
			t.Errorf("a cold start: %q, want %q", got, want)
		}
		if i := cold[len(cold)-1].Invocation; i.Instance != cold[0].Instance.ID || i.Start != api.StartRestore {
			t.Errorf("invocation %+v of instance %+v", i, cold[0].Instance)
		}

		if ended := told(heard(t, r, state(api.InstanceStopped))); !slices.Equal(ended, []string{"instance draining: " + errExpired.Error(), "instance stopped: " + errExpired.Error()}) {
			t.Errorf("its end: %q", ended)
		}
		if err := n.Remove(t.Context(), "hello"); err != nil {
			t.Fatal(err)
		}
		removed := heard(t, r, kind(api.EventFunctionRemoved))
		if got := told(removed); !slices.Equal(got, []string{"snapshot_removed", "function_removed"}) {
			t.Errorf("removal: %q", got)
		}
		text, err := json.Marshal(slices.Concat(all, cold, removed))
		if err != nil || strings.Contains(string(text), "hunter2") || !strings.Contains(string(text), api.Hidden) {
			t.Errorf("a secret is told, or none was there to hide: %v", err)
		}
	})
}

func TestEventsOfFailedStarts(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		w.set(func() { w.bootErr, w.restoreErr = errors.New("no boot"), errors.New("no restore") })
		r := n.Events("")
		if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{}); err == nil {
			t.Fatal("it started")
		}
		all := heard(t, r, state(api.InstanceStopped))
		if last := all[len(all)-1]; !strings.Contains(last.Reason, "no boot") {
			t.Errorf("%q", told(all))
		}
		// A deployment that fails ends what it tried.
		if _, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Args = []string{"other"} }), nil); err == nil {
			t.Fatal("it was deployed")
		}
		all = heard(t, r, func(ev api.Event) bool { return ev.Deploy != nil && ev.Deploy.Stage == api.StageFailed })
		if !slices.Contains(told(all), "instance stopped") || !strings.Contains(all[len(all)-1].Deploy.Error, "no boot") {
			t.Errorf("%q", told(all))
		}
	})
}

// Who comes back goes on where it was, and is told when it cannot.
func TestEventsGoOn(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		r := n.Events("")
		deploy(t, n, hello(nil))
		all := heard(t, r, kind(api.EventFunction))
		middle := all[3].ID
		again := heard(t, n.Events(middle), kind(api.EventFunction))
		if len(again) != len(all)-4 || again[0].ID != all[4].ID {
			t.Errorf("went on with %q, want %q", told(again), told(all[4:]))
		}
		for _, id := range []string{"x", "x-3", "-", n.events.epoch + "-", n.events.epoch + "-99999999", n.events.epoch + "--1"} {
			if ev, err := n.Events(id).Next(t.Context()); err != nil || ev.Kind != api.EventResync || ev.Reason == "" {
				t.Errorf("after %q: %+v, %v", id, ev, err)
			}
		}
		for range eventsKept + 1 {
			n.Record(api.Invocation{Function: "hello"})
		}
		if ev, err := n.Events(middle).Next(t.Context()); err != nil || ev.Reason != "events since then are forgotten" {
			t.Errorf("after one that is forgotten: %+v, %v", ev, err)
		}
		if ev, err := r.Next(t.Context()); err != nil || ev.Kind != api.EventResync {
			t.Errorf("a reader that was too slow: %+v, %v", ev, err)
		}
		n.Close(context.Background())
		m := w.open(t, nil)
		defer m.Close(context.Background())
		if ev, err := m.Events(middle).Next(t.Context()); err != nil || ev.Reason != "the daemon was started anew" {
			t.Errorf("in another life: %+v, %v", ev, err)
		}
	})
}
