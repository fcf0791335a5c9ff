package node

import (
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

func TestRecordsAreSelected(t *testing.T) {
	w := newWorld(t)
	n := w.open(t, nil)
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, r := range []api.Invocation{
		{ID: "ok", Status: 200, Start: api.StartWarm, Instance: "i-1", Phases: api.Phases{Total: time.Millisecond}},
		{ID: "slow", Status: 200, Start: api.StartRestore, Instance: "i-2", Phases: api.Phases{Total: 2 * time.Second}},
		{ID: "left", Status: 499, Failure: api.FailureClient, Start: api.StartWarm},
		{ID: "full", Status: 503, Failure: api.FailureQueue},
		{ID: "late", Status: 504, Failure: api.FailureTimeout, Start: api.StartWarm, Phases: api.Phases{Total: 8 * time.Second}},
	} {
		r.Function, r.Time = "hello", base.Add(time.Duration(i)*time.Minute)
		n.Record(r)
	}
	if err := n.rec.close(); err != nil { // flushes
		t.Fatal(err)
	}
	for _, tc := range []struct {
		q    api.InvocationQuery
		want string
	}{
		{api.InvocationQuery{}, "ok slow left full late"},
		{api.InvocationQuery{Status: "5xx"}, "full late"},
		{api.InvocationQuery{Status: "504"}, "late"},
		{api.InvocationQuery{Failure: api.AnyFailure}, "left full late"},
		{api.InvocationQuery{Failure: api.FailureQueue}, "full"},
		{api.InvocationQuery{Start: api.StartWarm}, "ok left late"},
		{api.InvocationQuery{Slower: time.Second}, "slow late"},
		{api.InvocationQuery{Slower: time.Second, Status: "2xx"}, "slow"},
		{api.InvocationQuery{Since: base.Add(time.Minute), Until: base.Add(3 * time.Minute)}, "slow left"},
		{api.InvocationQuery{Since: time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)}, "ok slow left full late"},
		{api.InvocationQuery{Until: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}, "ok slow left full late"},
		{api.InvocationQuery{Since: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}, ""},
		{api.InvocationQuery{Until: time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)}, ""},
		{api.InvocationQuery{Instance: "i-2"}, "slow"},
		{api.InvocationQuery{ID: "full"}, "full"},
		{api.InvocationQuery{Limit: 2, Failure: api.AnyFailure}, "full late"},
		{api.InvocationQuery{Function: "' OR true --"}, ""},
	} {
		recs, err := n.Invocations(t.Context(), tc.q)
		var ids []string
		for _, r := range recs {
			ids = append(ids, r.ID)
		}
		if got := strings.Join(ids, " "); err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v; want %q", tc.q, got, err, tc.want)
		}
	}
}
