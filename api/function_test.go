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
