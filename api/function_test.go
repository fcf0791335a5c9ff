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
