package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrips(t *testing.T) {
	n := controltest.New()
	n.Records = []api.Invocation{{ID: "r1", Function: "hello", Start: api.StartWarm, Status: 200, Phases: api.Phases{Total: 3 * time.Millisecond}}}
	c, _ := clientOf(t, control.Options{Node: n, Version: api.Version{Version: "v1"}, URL: func(f string) string { return "http://" + f }})
	ctx := t.Context()

	if v, err := c.Version(ctx); err != nil || v.Version != "v1" {
		t.Fatalf("version: %+v, %v", v, err)
	}
	if fs, err := c.Functions(ctx); err != nil || fs == nil || len(fs) != 0 {
		t.Fatalf("no functions: %v, %v", fs, err)
	}
	var stages []api.DeployStage
	f, err := c.Deploy(ctx, api.Function{Name: "hello", Image: "dir:/x", Env: map[string]string{"A": "b"}},
		func(e api.DeployEvent) { stages = append(stages, e.Stage) })
	if err != nil || f.ImageDigest == "" || f.MemoryMiB != 256 || f.Env["A"] != api.Hidden {
		t.Fatalf("deploy: %+v, %v", f, err)
	}
	if len(stages) != 2 || stages[0] != api.StagePulling || stages[1] != api.StageDone {
		t.Errorf("stages are %v", stages)
	}
	fs, err := c.Functions(ctx)
	if err != nil || len(fs) != 1 || fs[0].URL != "http://hello" || fs[0].Instances[api.InstanceIdle] != 1 {
		t.Fatalf("functions: %+v, %v", fs, err)
	}
	s, err := c.CreateSnapshot(ctx, "hello")
	if err != nil || s.ID != "s1" {
		t.Fatalf("snapshot: %+v, %v", s, err)
	}
	if m, err := c.SnapshotMemory(ctx, "s1", false); err != nil || m.Policy != "stream" || m.Trace.Summary.Contiguity != 2.5 || m.Map != nil {
		t.Errorf("%+v: %v", m, err)
	}
	if m, err := c.SnapshotMemory(ctx, "s1", true); err != nil || m.Map.Touched.Pages() != 5 || m.Map.Missed == nil || m.Map.Wasted != nil {
		t.Errorf("%+v: %v", m.Map, err)
	}
	if m, err := c.Snapshot(ctx, "s1"); err != nil || !strings.Contains(string(m), `"s1"`) {
		t.Fatalf("manifest: %s, %v", m, err)
	}
	d, err := c.Function(ctx, "hello")
	if err != nil || d.Snapshots != 1 || len(d.InstanceList) != 2 || len(d.Recent) != 1 {
		t.Fatalf("detail: %+v, %v", d, err)
	}
	if r, err := c.Invocation(ctx, "r1"); err != nil || r.Phases.Total != 3*time.Millisecond {
		t.Fatalf("record: %+v, %v", r, err)
	}
	if rs, err := c.Invocations(ctx, api.InvocationQuery{Function: "hello", Limit: 5, Since: time.Now()}); err != nil || len(rs) != 1 {
		t.Fatalf("records: %+v, %v", rs, err)
	}
	if is, err := c.Instances(ctx, "hello"); err != nil || len(is) != 2 {
		t.Fatalf("instances: %+v, %v", is, err)
	}
	if ss, err := c.Snapshots(ctx, ""); err != nil || len(ss) != 1 {
		t.Fatalf("snapshots: %+v, %v", ss, err)
	}
	var out bytes.Buffer
	if err := c.Logs(ctx, api.LogQuery{Function: "hello", Tail: 2}, &out); err != nil || out.String() != "line 1\nline 2\n" {
		t.Fatalf("logs: %q, %v", out.String(), err)
	}
	if err := c.RemoveFunction(ctx, "hello"); err != nil {
		t.Fatal(err)
	}
	if fs, err := c.Functions(ctx); err != nil || len(fs) != 0 {
		t.Fatalf("after removal: %v, %v", fs, err)
	}
}

func TestErrorsReachTheClient(t *testing.T) {
	n := controltest.New("hello")
	c, _ := clientOf(t, control.Options{Node: n})
	ctx := t.Context()
	for name, e := range map[string]struct {
		err    error
		status int
		says   string
	}{
		"no function":      {c.RemoveFunction(ctx, "nosuch"), 404, "nosuch"},
		"logs of none":     {c.Logs(ctx, api.LogQuery{Function: "nosuch"}, io.Discard), 404, "nosuch"},
		"snapshot of none": {second(c.CreateSnapshot(ctx, "nosuch")), 404, "nosuch"},
		"no snapshot":      {c.RemoveSnapshot(ctx, "x"), 404, "not found"},
		"no memory":        {second(c.SnapshotMemory(ctx, "x", true)), 404, "not found"},
		"no manifest":      {second(c.Snapshot(ctx, "x")), 404, "not found"},
		"no record":        {second(c.Invocation(ctx, "x")), 404, "not found"},
		"bad snapshot":     {c.VerifySnapshot(ctx, "bad"), 409, "digest differs"},
		"broken":           {second(c.Invocations(ctx, api.InvocationQuery{Function: "broken"})), 500, "disk I/O"},
		"name":             {second(c.Deploy(ctx, api.Function{Name: "a_b", Image: "x"}, nil)), 400, "a_b"},
		"no image":         {second(c.Deploy(ctx, api.Function{Name: "ab"}, nil)), 400, "image"},
		"limit":            {second(c.Invocations(ctx, api.InvocationQuery{Limit: -1})), 400, "limit"},
	} {
		var ae *api.Error
		if !errors.As(e.err, &ae) || ae.Status != e.status || !strings.Contains(ae.Message, e.says) {
			t.Errorf("%s: got %#v", name, e.err)
		}
	}
	n.DeployErr = &api.Error{Status: 422, Message: "layer 2 is truncated", Hint: "push it again"}
	_, err := c.Deploy(ctx, api.Function{Name: "ab", Image: "x"}, nil)
	var ae *api.Error
	if !errors.As(err, &ae) || ae.Status != 422 || ae.Hint != "push it again" {
		t.Errorf("failed deploy: %#v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestStrictness(t *testing.T) {
	h := conforming(t, control.New(control.Options{Node: controltest.New()}).Handler())
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		says               string
	}{
		"unknown field":    {"PUT", "/v1/functions/a", `{"name":"a","image":"x","memroy_mib":1}`, 400, "memroy_mib"},
		"other name":       {"PUT", "/v1/functions/a", `{"name":"b","image":"x"}`, 400, `"b"`},
		"two values":       {"PUT", "/v1/functions/a", `{"name":"a","image":"x"}{}`, 400, "goes on"},
		"not JSON":         {"PUT", "/v1/functions/a", `name=a`, 400, "body"},
		"null":             {"POST", "/v1/snapshots", `null`, 400, "want an object"},
		"empty value":      {"GET", "/v1/invocations?until=", "", 400, "until is empty"},
		"empty":            {"POST", "/v1/snapshots", ``, 400, "body"},
		"too large":        {"POST", "/v1/snapshots", `{"function":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "larger"},
		"unknown query":    {"GET", "/v1/invocations?functoin=a", "", 400, "functoin"},
		"repeated query":   {"GET", "/v1/invocations?limit=1&limit=2", "", 400, "2 times"},
		"bad query":        {"GET", "/v1/invocations?limit=ten", "", 400, "ten"},
		"bad time":         {"GET", "/v1/invocations?since=now", "", 400, "now"},
		"bad follow":       {"GET", "/v1/functions/a/logs?follow=perhaps", "", 400, "perhaps"},
		"query where none": {"GET", "/v1/images?x=1", "", 400, "want none"},
		"no such call":     {"GET", "/v2/functions", "", 404, "no such call"},
		"no such method":   {"PATCH", "/v1/functions", "", 405, "this takes GET, HEAD"},
		"no metrics":       {"GET", "/metrics", "", 404, "no such call"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
			var e api.Error
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != c.status || e.Status != c.status || w.Header().Get("Content-Type") != api.ProblemType || !strings.Contains(e.Message, c.says) {
				t.Fatalf("got %d %s (%v)", w.Code, w.Body, err)
			}
		})
	}
}

func TestManyProgressEventsAreThinned(t *testing.T) {
	n := controltest.New()
	n.Bytes = 100_000
	c, _ := clientOf(t, control.Options{Node: n})
	events := 0
	if _, err := c.Deploy(t.Context(), api.Function{Name: "a", Image: "x"}, func(api.DeployEvent) { events++ }); err != nil {
		t.Fatal(err)
	}
	if events < 2 || events > 10_000 {
		t.Errorf("%d events arrived", events)
	}
}

func TestFollowedLogsEnd(t *testing.T) {
	t.Run("with the client", func(t *testing.T) {
		n := controltest.New("hello")
		c, _ := clientOf(t, control.Options{Node: n})
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- c.Logs(ctx, api.LogQuery{Function: "hello", Follow: true}, w) }()
		if _, err := io.ReadFull(r, make([]byte, len("line 0\n")*3)); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		<-n.Followed
	})
	t.Run("with the daemon", func(t *testing.T) {
		n := controltest.New("hello")
		closing := make(chan struct{})
		c, _ := clientOf(t, control.Options{Node: n, Closing: closing})
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- c.Logs(t.Context(), api.LogQuery{Function: "hello", Follow: true}, w) }()
		if _, err := io.ReadFull(r, make([]byte, len("line 0\n")*3)); err != nil {
			t.Fatal(err)
		}
		close(closing)
		<-n.Followed
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestInvokePassesThrough(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set(api.HeaderInvocation, "r1")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte(r.Method + " " + r.URL.RequestURI() + " " + r.Header.Get(api.HeaderStart) + " " + string(b)))
	})
	c, _ := clientOf(t, control.Options{Node: controltest.New("hello"), Invoke: echo})
	resp, err := c.Invoke(t.Context(), api.InvokeRequest{Function: "hello", Path: "/a?b=c", Body: strings.NewReader("data"), Start: api.StartBoot})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusTeapot || string(b) != "POST /v1/functions/hello/invoke/a?b=c boot data" {
		t.Fatalf("got %d %q", resp.StatusCode, b)
	}
}

func TestToken(t *testing.T) {
	token := strings.Repeat("k", 32)
	h, err := control.RequireToken(token, nil, control.New(control.Options{Node: controltest.New()}).Handler())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, h)
	for _, bad := range []string{"", "x", token[1:], token + "k"} {
		c := api.NewClient(api.ClientOptions{Address: l.Addr().String(), Token: bad})
		_, err := c.Version(t.Context())
		var ae *api.Error
		if !errors.As(err, &ae) || ae.Status != http.StatusUnauthorized || ae.Hint == "" {
			t.Errorf("token %q: %v", bad, err)
		}
		c.Close()
	}
	c := api.NewClient(api.ClientOptions{Address: l.Addr().String(), Token: token})
	defer c.Close()
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := control.RequireToken("", nil, http.NotFoundHandler()); err == nil {
		t.Error("an empty token was accepted")
	}
}

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		ok   bool
	}{
		"good":   {strings.Repeat("x", 32) + "\n", 0o600, true},
		"open":   {strings.Repeat("x", 32), 0o644, false},
		"short":  {"secret", 0o600, false},
		"empty":  {"", 0o600, false},
		"broken": {strings.Repeat("x", 20) + "\n" + strings.Repeat("x", 20), 0o600, false},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := control.ReadToken(path); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := control.ReadToken(""); err == nil {
		t.Error("no file was accepted")
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := control.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode is %v, %v", st.Mode(), err)
	}
	if _, err := control.ListenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Fatalf("a living socket was replaced: %v", err)
	}
	// As after a crash: the file stays, nobody listens.
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + "2", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ul.SetUnlinkOnClose(false)
	if err := errors.Join(l.Close(), ul.Close(), os.Rename(path+"2", path)); err != nil {
		t.Fatal(err)
	}
	l, err = control.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatalf("a dead socket is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.ListenUnix(t.Context(), path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
}

func TestUnreachable(t *testing.T) {
	c := api.NewClient(api.ClientOptions{Socket: filepath.Join(t.TempDir(), "none.sock")})
	defer c.Close()
	_, err := c.Version(t.Context())
	var u *api.UnreachableError
	if !errors.As(err, &u) {
		t.Fatalf("got %v", err)
	}
}

// TestClientKeepsTheServersLimit: a request that the server would refuse for its
// size is not sent.
func TestClientKeepsTheServersLimit(t *testing.T) {
	c := api.NewClient(api.ClientOptions{Socket: "/nonexistent"})
	f := api.Function{Name: "hello", Image: strings.Repeat("x", api.MaxRequest)}
	if _, err := c.Deploy(t.Context(), f, nil); err == nil || !strings.Contains(err.Error(), "takes at most") {
		t.Errorf("a function of more than %d bytes: %v", api.MaxRequest, err)
	}
	if err := f.WithDefaults().Validate(); err == nil || len(err.Error()) > 1000 {
		t.Errorf("a reference that long: %.100v", err)
	}
}
