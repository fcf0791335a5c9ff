package control_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

func TestSetAndRollback(t *testing.T) {
	n := controltest.New()
	c, _ := clientOf(t, control.Options{Node: n})
	ctx := t.Context()
	if _, err := c.Deploy(ctx, api.Function{Name: "shop", Image: "dir:/x", Env: map[string]string{"DB": "hunter2"}}, nil); err != nil {
		t.Fatal(err)
	}
	var done int
	f, err := c.Set(ctx, "shop", map[string]any{"timeout": "5s", "env": map[string]any{"LEVEL": "2"}}, func(e api.DeployEvent) {
		if e.Function != nil && e.Function.Env["DB"] == api.Hidden {
			done++
		}
	})
	if err != nil || done != 1 || f.Revision != 2 || f.Timeout.String() != "5s" || f.Env["DB"] != api.Hidden {
		t.Errorf("set: %+v, %v, %d events that hide", f, err, done)
	}
	if stored, _ := n.Function("shop"); stored.Env["DB"] != "hunter2" || stored.Env["LEVEL"] != "2" {
		t.Errorf("stored %+v", stored)
	}
	revs, err := c.Revisions(ctx, "shop")
	if err != nil || len(revs) != 2 || !revs[0].Current || revs[0].Change != "set env.LEVEL, timeout" || revs[1].Function.Env["DB"] != api.Hidden {
		t.Errorf("revisions: %+v, %v", revs, err)
	}
	if f, err = c.Rollback(ctx, "shop", 0, nil); err != nil || f.Revision != 3 || f.Timeout.String() != "1m0s" {
		t.Errorf("rollback: %+v, %v", f, err)
	}
	for what, call := range map[string]func() error{
		"no such key":  func() error { _, err := c.Set(ctx, "shop", map[string]any{"timeot": "1s"}, nil); return err },
		"out of range": func() error { _, err := c.Set(ctx, "shop", map[string]any{"memory_mib": 1}, nil); return err },
		"hidden value": func() error {
			_, err := c.Set(ctx, "shop", map[string]any{"env": map[string]string{"A": api.Hidden}}, nil)
			return err
		},
		"not an object":    func() error { _, err := c.Set(ctx, "shop", 7, nil); return err },
		"negative":         func() error { _, err := c.Rollback(ctx, "shop", -1, nil); return err },
		"absent function":  func() error { _, err := c.Set(ctx, "none", map[string]any{"timeout": "1s"}, nil); return err },
		"absent revision":  func() error { _, err := c.Rollback(ctx, "shop", 99, nil); return err },
		"absent revisions": func() error { _, err := c.Revisions(ctx, "none"); return err },
	} {
		want := http.StatusBadRequest
		if strings.HasPrefix(what, "absent") {
			want = http.StatusNotFound
		}
		var e *api.Error
		if err := call(); !errors.As(err, &e) || e.Status != want {
			t.Errorf("%s: %v, want status %d", what, err, want)
		}
	}
}

// Values of environments are told to who asks for them, and to nobody else.
func TestEnvironmentIsHidden(t *testing.T) {
	n := controltest.New()
	c, path := clientOf(t, control.Options{Node: n})
	if _, err := c.Deploy(t.Context(), api.Function{Name: "shop", Image: "dir:/x", Env: map[string]string{"DB": "hunter2"}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"/v1/functions", "/v1/functions/shop", "/v1/functions/shop/revisions", "/v1/functions/shop?env=false"} {
		if _, body := request(t, path, "GET", call, ""); strings.Contains(body, "hunter2") || !strings.Contains(body, `"DB":"`+api.Hidden) {
			t.Errorf("%s: %s", call, body)
		}
	}
	d, err := c.FunctionEnv(t.Context(), "shop")
	if err != nil || d.Env["DB"] != "hunter2" {
		t.Errorf("asked for: %+v, %v", d.Env, err)
	}
}

// request sends one over the socket and returns the answer's status and body.
func request(t *testing.T, socket, method, path, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://skep"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
