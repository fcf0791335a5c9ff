package control_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// A query reaches the node as the client made it, and one that means nothing is
// refused.
func TestRecordQueries(t *testing.T) {
	n := controltest.New("hello")
	c, path := clientOf(t, control.Options{Node: n})
	q := api.InvocationQuery{
		ID: "a", Function: "hello", Since: time.Unix(5, 6).UTC(), Until: time.Unix(7, 8).UTC(), Status: "5xx", Failure: api.AnyFailure,
		Start: api.StartWarm, Instance: "i-1", Slower: 1500 * time.Millisecond, Limit: 3,
	}
	if _, err := c.Invocations(t.Context(), q); err != nil || n.Query != q {
		t.Errorf("asked for %+v, the node saw %+v: %v", q, n.Query, err)
	}
	for name, value := range map[string]string{"status": "6yx", "failure": "mine", "start": "hot", "slower_than": "5", "until": "now", "limit": "-1", "nope": "1"} {
		if code, body := request(t, path, http.MethodGet, "/v1/invocations?"+url.Values{name: {value}}.Encode(), ""); code != http.StatusBadRequest {
			t.Errorf("%s=%s: %d %s", name, value, code, body)
		}
	}
}
