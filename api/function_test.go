package api

import (
	"strings"
	"testing"
	"time"
)

func TestLimitsFollowTimeout(t *testing.T) {
	minute := time.Minute
	if l, want := (Function{}).WithDefaults().Limits(), (Limits{minute, minute, minute, minute, 0}); l != want {
		t.Errorf("by default %+v, want %+v", l, want)
	}
	f := Function{Timeout: Duration(5 * minute), IdleTimeout: Duration(time.Second), StreamTimeout: Duration(time.Hour)}
	if l, want := f.WithDefaults().Limits(), (Limits{5 * minute, 5 * minute, time.Second, 5 * minute, time.Hour}); l != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	f = Function{Name: "f", Image: "x", QueueTimeout: -1}.WithDefaults()
	if err := f.Validate(); err == nil || !strings.Contains(err.Error(), "queue_timeout") {
		t.Errorf("a negative limit: %v", err)
	}
}

// What a name and a policy may be, and how long.
func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"": false, "f": true, "a-1": true, "-a": false, "a-": false, "A": false, "a/b": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false} {
		if err := (Function{Name: name, Image: "x"}).WithDefaults().Validate(); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for policy, ok := range map[string]bool{"": true, "reap": true, "REAP": false, strings.Repeat("a", 32): true, strings.Repeat("a", 33): false} {
		if err := (Function{Name: "f", Image: "x", MemoryPolicy: policy}).WithDefaults().Validate(); (err == nil) != ok {
			t.Errorf("policy %q: %v", policy, err)
		}
	}
}

// A rehearsal that is not one is refused, by the setting that is wrong.
func TestRehearsal(t *testing.T) {
	for says, r := range map[string]Rehearsal{
		"":                      {},
		"no path":               {Body: "x"},
		"starts with /":         {Path: "resize"},
		"starts with / ":        {Path: "/a b"},
		"invalid method":        {Path: "/", Method: "GE T"},
		`"X Y" is no header`:    {Path: "/", Header: map[string]string{"X Y": "1"}},
		`"X-Key" has the value`: {Path: "/", Header: map[string]string{"X-Key": Hidden}},
		"at most 65536":         {Path: "/", Body: strings.Repeat("x", 65537)},
	} {
		err := Function{Name: "f", Image: "x", Rehearsal: r}.WithDefaults().Validate()
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), strings.TrimSpace(says)) {
			t.Errorf("%+v: %v, want %q", r, err, says)
		}
	}
	for want, r := range map[string]Rehearsal{"": {}, "GET /?x=1": {Path: "/?x=1"}, "POST /a": {Path: "/a", Body: "b"}, "PUT /a": {Path: "/a", Method: "PUT", Body: "b"}} {
		if r.String() != want {
			t.Errorf("%+v is %q, want %q", r, r, want)
		}
	}
	f := Function{Rehearsal: Rehearsal{Path: "/", Header: map[string]string{"Authorization": "secret"}}}
	if f.Hide().Rehearsal.Header["Authorization"] != Hidden || f.Rehearsal.Header["Authorization"] != "secret" {
		t.Error("what is told of it has its header's values, or they are lost")
	}
	f, names, err := f.WithDefaults().Change([]byte(`{"rehearsal":{"path":"/b","header":null}}`))
	if err != nil || f.Rehearsal.Path != "/b" || f.Rehearsal.Header != nil || strings.Join(names, " ") != "rehearsal.header rehearsal.path" {
		t.Errorf("changed: %+v %q, %v", f.Rehearsal, names, err)
	}
	if f, _, err = f.Change([]byte(`{"rehearsal":null}`)); err != nil || !f.Rehearsal.IsZero() {
		t.Errorf("taken away: %+v, %v", f.Rehearsal, err)
	}
}
