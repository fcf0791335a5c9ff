package control_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// What is asked of the object store reaches the node, and its answers the client; what means nothing
// is refused.
func TestStore(t *testing.T) {
	c, path := clientOf(t, control.Options{Node: controltest.New("hello")})
	ctx := t.Context()
	if p, err := c.PushSnapshot(ctx, "s1"); err != nil || p.ID != "s1" || p.New != 50 || p.Took != api.Duration(time.Second) {
		t.Errorf("pushed %+v, %v", p, err)
	}
	if _, err := c.PushSnapshot(ctx, "bad"); err == nil {
		t.Error("pushed one that is not there")
	}
	if s, err := c.PullSnapshot(ctx, api.PullRequest{Function: "hello", ID: "s1"}); err != nil || s.ID != "s1" || s.Function != "hello" {
		t.Errorf("pulled %+v, %v", s, err)
	}
	if list, err := c.RemoteSnapshots(ctx, "f"); err != nil || len(list) != 2 || list[1].Function != "f" || list[1].Problem == "" {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := c.RemoveRemoteSnapshot(ctx, "hello", "s1"); err != nil {
		t.Error(err)
	}
	if o, err := c.CollectStore(ctx, api.CollectRequest{Keep: 2, Grace: api.Duration(5 * time.Second)}); err != nil || o.Deleted != 2 || o.Freed != 5 {
		t.Errorf("collected %+v, %v", o, err)
	}
	if v, err := c.VerifyStore(ctx, "hello", false); err != nil || len(v.Problems) != 1 || v.Problems[0].Snapshot != "hello/s0" {
		t.Errorf("verified %+v, %v", v, err)
	}
	if v, err := c.VerifyStore(ctx, "", true); err != nil || len(v.Problems) != 0 {
		t.Errorf("verified quickly %+v, %v", v, err)
	}
	if u, err := c.StoreUsage(ctx, ""); err != nil || len(u.Snapshots) != 1 || u.Snapshots[0].Own != 100 {
		t.Errorf("used %+v, %v", u, err)
	}
	for _, r := range [][3]string{
		{http.MethodPost, "/v1/store/pull", `{}`}, {http.MethodPost, "/v1/store/pull", `{"function": "f", "x": 1}`}, {http.MethodPost, "/v1/store/gc", `{"keep": -1}`},
		{http.MethodPost, "/v1/store/gc", `{"grace": "soon"}`}, {http.MethodPost, "/v1/store/verify?quick=perhaps", ``}, {http.MethodGet, "/v1/store/usage?x=1", ``}, {http.MethodGet, "/v1/store/snapshots?x=1", ``},
	} {
		if code, body := request(t, path, r[0], r[1], r[2]); code != http.StatusBadRequest {
			t.Errorf("%v: %d %s", r, code, body)
		}
	}
}
