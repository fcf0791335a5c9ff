package control_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// openAPI is as much of the API's document as answers are checked against.
type openAPI struct {
	Paths map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Responses   map[string]struct {
			Ref     string `json:"$ref"`
			Content map[string]struct {
				Schema json.RawMessage `json:"schema"`
				Item   json.RawMessage `json:"x-item-schema"`
			} `json:"content"`
		} `json:"responses"`
	} `json:"paths"`
	Components struct {
		Schemas json.RawMessage `json:"schemas"`
	} `json:"components"`
}

func readDocument(t testing.TB) openAPI {
	t.Helper()
	b, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var d openAPI
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// operation finds the call that a request is of; "" when there is none.
func (d openAPI) operation(method, path string) (in, op string) {
	for p, ops := range d.Paths {
		pattern := "^" + regexp.MustCompile(`\\\{path\\\}`).ReplaceAllString(regexp.QuoteMeta(p), ".*") + "$"
		pattern = regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(pattern, "[^/]+")
		if _, ok := ops[strings.ToLower(method)]; ok && regexp.MustCompile(pattern).MatchString(path) && (in == "" || len(p) > len(in)) {
			in, op = p, strings.ToLower(method)
		}
	}
	return in, op
}

// check says what about an answer is not as the document has it.
func (d openAPI) check(method, path string, status int, contentType string, body []byte) error {
	in, op := d.operation(method, path)
	if in == "" || strings.Contains(in, "/invoke/") || in == "/metrics" && status == http.StatusNotFound {
		return nil // of no call, or a function's own, or of a server without metrics
	}
	contentType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("its content type: %w", err)
	}
	r, ok := d.Paths[in][op].Responses[strconv.Itoa(status)]
	switch {
	case !ok && status != http.StatusMethodNotAllowed:
		return fmt.Errorf("status %d is not one of its: add it to the route's fails in routes.go, or mend the handler: %s", status, body)
	case !ok, r.Ref != "":
		if contentType != api.ProblemType {
			return fmt.Errorf("an error of type %q, want %s", contentType, api.ProblemType)
		}
		return d.validate([]byte(`{"$ref":"#/$defs/Error"}`), body)
	}
	if status == http.StatusSwitchingProtocols {
		return nil
	}
	media, ok := r.Content[contentType]
	switch {
	case !ok:
		return fmt.Errorf("its answer is of type %q, which the document does not have", contentType)
	case contentType == "application/json":
		return d.validate(media.Schema, body)
	}
	for line := range strings.Lines(string(body)) {
		if data, ok := strings.CutPrefix(line, "data: "); ok || contentType == "application/x-ndjson" {
			if err := d.validate(media.Item, []byte(strings.TrimSpace(data))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d openAPI) validate(schema, body []byte) error {
	root := bytes.ReplaceAll([]byte(`{"$defs":`+string(d.Components.Schemas)+`,"allOf":[`+string(schema)+`]}`), []byte("#/components/schemas/"), []byte("#/$defs/"))
	var s jsonschema.Schema
	if err := json.Unmarshal(root, &s); err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	resolved, err := s.Resolve(nil)
	if err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return fmt.Errorf("%w: %.200s", err, body)
	}
	if err := resolved.Validate(v); err != nil {
		return fmt.Errorf("%w: %.500s", err, body)
	}
	return nil
}

// conforming passes requests on and fails the test when an answer is not as the API's
// document says.
func conforming(t testing.TB, next http.Handler) http.Handler {
	d := readDocument(t)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &tee{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		if rec.hijacked {
			return
		}
		if err := d.check(r.Method, r.URL.Path, rec.status, w.Header().Get("Content-Type"), rec.body.Bytes()); err != nil {
			t.Errorf("%s %s is not as control/openapi.json says: %v", r.Method, r.URL, err)
		}
	})
}

// tee keeps what it passes on.
type tee struct {
	http.ResponseWriter
	status   int
	body     bytes.Buffer
	hijacked bool
}

func (w *tee) WriteHeader(status int) { w.status = status; w.ResponseWriter.WriteHeader(status) }
func (w *tee) Write(b []byte) (int, error) {
	w.body.Write(b)
	return w.ResponseWriter.Write(b)
}
func (w *tee) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w *tee) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// TestEveryCallIsAsDocumented makes each call of the document, and looks at what comes.
func TestEveryCallIsAsDocumented(t *testing.T) {
	calls := map[string]struct {
		method, path, body string
		status             int
	}{
		"getVersion":           {"GET", "/v1/version", "", 200},
		"getDocument":          {"GET", "/v1/openapi.json", "", 200},
		"listFunctions":        {"GET", "/v1/functions?limit=1", "", 200},
		"deployFunction":       {"PUT", "/v1/functions/new", `{"name":"new","image":"x","env":{"A":"b"}}`, 200},
		"setFunction":          {"PATCH", "/v1/functions/hello", `{"timeout":"5s"}`, 200},
		"getFunction":          {"GET", "/v1/functions/hello?env=true", "", 200},
		"removeFunction":       {"DELETE", "/v1/functions/other", "", 200},
		"listRevisions":        {"GET", "/v1/functions/hello/revisions", "", 200},
		"rollbackFunction":     {"POST", "/v1/functions/hello/rollback", `{}`, 200},
		"getLogs":              {"GET", "/v1/functions/hello/logs?tail=2", "", 200},
		"execInFunction":       {"POST", "/v1/functions/hello/exec", "", 426},
		"execInInstance":       {"POST", "/v1/instances/i-0000000000000000/exec", "", 426},
		"listInstances":        {"GET", "/v1/instances?function=hello", "", 200},
		"listSnapshots":        {"GET", "/v1/snapshots", "", 200},
		"createSnapshot":       {"POST", "/v1/snapshots", `{"function":"hello"}`, 200},
		"getSnapshot":          {"GET", "/v1/snapshots/s0", "", 200},
		"removeSnapshot":       {"DELETE", "/v1/snapshots/s1", "", 200},
		"getSnapshotMemory":    {"GET", "/v1/snapshots/s0/memory?pages=true", "", 200},
		"verifySnapshot":       {"POST", "/v1/snapshots/s0/verify", "", 200},
		"pushSnapshot":         {"POST", "/v1/snapshots/s0/push", "", 200},
		"pullSnapshot":         {"POST", "/v1/store/pull", `{"function":"hello"}`, 200},
		"listRemoteSnapshots":  {"GET", "/v1/store/snapshots?function=hello", "", 200},
		"removeRemoteSnapshot": {"DELETE", "/v1/store/snapshots/hello/s0", "", 200},
		"collectStore":         {"POST", "/v1/store/gc", `{"dry_run":true,"grace":"1h"}`, 200},
		"verifyStore":          {"POST", "/v1/store/verify?quick=false", "", 200},
		"getStoreUsage":        {"GET", "/v1/store/usage", "", 200},
		"followEvents":         {"GET", "/v1/events?after=0", "", 200},
		"listImages":           {"GET", "/v1/images", "", 200},
		"pruneImages":          {"POST", "/v1/images/prune", "", 200},
		"listInvocations":      {"GET", "/v1/invocations?limit=1&since=2026-01-31T12:00:00Z", "", 200},
		"getInvocation":        {"GET", "/v1/invocations/r1", "", 200},
		"getHealthz":           {"GET", "/healthz", "", 200},
		"getReadyz":            {"GET", "/readyz", "", 200},
		"getMetrics":           {"GET", "/metrics", "", 200},
		"listExperiments":      {"GET", "/v1/experiments?limit=1", "", 200},
		"getReport":            {"GET", "/v1/experiments/quick/report", "", 200},
		"getFigure":            {"GET", "/v1/experiments/quick/figures/fig8?narrow=true", "", 200},
		"getUsage":             {"GET", "/v1/usage", "", 200},
		"createSession":        {"POST", "/v1/sessions", "", 200},
	}
	n := controltest.New("hello", "other")
	n.SnapshotList = []api.Snapshot{{ID: "s0", Function: "hello", Created: time.Unix(9, 0), Usable: true}}
	n.Records = []api.Invocation{{ID: "r1", Function: "hello", Start: api.StartRestore, Status: 200, Phases: api.Phases{Load: time.Millisecond, Total: 3 * time.Millisecond},
		Memory: &api.MemoryStats{Policy: "stream", Missed: -1}}}
	f, _ := n.Function("hello")
	for _, ev := range []api.Event{
		{Kind: api.EventInstance, Instance: &api.Instance{ID: "i1", State: api.InstanceIdle, Start: api.StartRestore}},
		{Kind: api.EventPhase, Phase: &api.StartPhase{Instance: "i1", Name: "load"}},
		{Kind: api.EventInvocation, Invocation: &n.Records[0]},
		{Kind: api.EventDeploy, Deploy: &api.DeployEvent{Stage: api.StageDone, Function: &f, Snapshot: &n.SnapshotList[0]}},
		{Kind: api.EventFunction, Settings: &f, Reason: "deploy"},
	} {
		n.Happened.Publish(ev)
	}
	m := control.NewMetrics(n, api.Version{}, nil)
	h := control.New(control.Options{Node: n, Results: controltest.Results(t), Metrics: m.Handler(), Version: api.Version{Version: "v1", Go: "go1"}, URL: func(f string) string { return "http://" + f }}).Handler()
	d := readDocument(t)
	for path, ops := range d.Paths {
		for method, op := range ops {
			if strings.Contains(path, "/invoke/") {
				continue
			}
			c, ok := calls[op.OperationID]
			if !ok {
				t.Errorf("%s %s: nothing here calls %s: add a call to it to this test, so that its answer is checked", method, path, op.OperationID)
				continue
			}
			if in, _ := d.operation(c.method, strings.Split(c.path, "?")[0]); in != path {
				t.Errorf("%s calls %s, want %s", op.OperationID, in, path)
			}
		}
	}
	ids := make([]string, 0, len(calls))
	for id := range calls {
		ids = append(ids, id)
	}
	slices.Sort(ids) // deploys before what needs them
	for _, id := range ids {
		c, h := calls[id], h
		t.Run(id, func(t *testing.T) {
			req := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			if id == "followEvents" {
				ctx, cancel := context.WithCancel(t.Context())
				req = req.WithContext(ctx)
				n.Happened.Publish(api.Event{Kind: api.EventFunctionRemoved, Function: "last"})
				h = endAfter(h, `"last"`, cancel)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if w.Code != c.status {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
			if err := d.check(c.method, req.URL.Path, w.Code, w.Header().Get("Content-Type"), w.Body.Bytes()); err != nil {
				t.Errorf("%s %s is not as control/openapi.json says: %v", c.method, c.path, err)
			}
		})
	}
}

// endAfter calls end when the answer has that text in it.
func endAfter(next http.Handler, text string, end func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&ending{ResponseWriter: w, text: text, end: end}, r)
	})
}

type ending struct {
	http.ResponseWriter
	text string
	end  func()
}

func (e *ending) Unwrap() http.ResponseWriter { return e.ResponseWriter }
func (e *ending) Write(b []byte) (int, error) {
	if strings.Contains(string(b), e.text) {
		defer e.end()
	}
	return e.ResponseWriter.Write(b)
}

func TestPages(t *testing.T) {
	var names []string
	for i := range 7 {
		names = append(names, fmt.Sprintf("f%d", i))
	}
	n := controltest.New(names...)
	for i := range 5 {
		n.SnapshotList = append(n.SnapshotList, api.Snapshot{ID: fmt.Sprintf("s%d", i), Created: time.Unix(int64(i/2), 0)})
	}
	h := conforming(t, control.New(control.Options{Node: n}).Handler())
	get := func(path string) (items []struct{ Name, ID string }, next string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &items); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), `>; rel="next"`)
		return items, next
	}
	all := func(path string) (seen []string) {
		for path != "" {
			items, next := get(path)
			for _, i := range items {
				seen = append(seen, i.Name+i.ID)
			}
			path = next
			if path != "" {
				_ = n.Remove(t.Context(), seen[len(seen)-1]) // where the page ended is gone
			}
		}
		return seen
	}
	if got, want := all("/v1/snapshots?limit=2"), []string{"s4", "s2", "s3", "s0", "s1"}; !slices.Equal(got, want) {
		t.Errorf("snapshots in pages: %v, want %v", got, want)
	}
	if got := all("/v1/functions?limit=3"); !slices.Equal(got, names) {
		t.Errorf("functions in pages: %v", got)
	}
	if items, next := get("/v1/functions?limit=0"); next != "" || len(items) != 5 {
		t.Errorf("without a limit: %v, then %q", items, next)
	}
	// Where a page ends is as the document says, of today's times too.
	n.SnapshotList = []api.Snapshot{{ID: "new", Created: time.Now()}, {ID: "newer", Created: time.Now()}}
	_, next := get("/v1/snapshots?limit=1")
	u, err := url.Parse(next)
	if err != nil {
		t.Fatal(err)
	}
	place := u.Query().Get("after")
	if pattern := patternOf(t, "/v1/snapshots", "after"); !regexp.MustCompile(pattern).MatchString(place) {
		t.Errorf("a page ends at %q, which is not like %s", place, pattern)
	}
	// And no place in another list, where it would pass over what it should not.
	for _, path := range []string{"/v1/functions?after=f1", "/v1/functions?after=functions:0", "/v1/functions?after=" + place, "/v1/instances?after=" + place,
		"/v1/experiments?after=" + place, "/v1/invocations?after=" + place, "/v1/snapshots?after=functions:0:f1", "/v1/snapshots?after=snapshots:99999999999999999999:s"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// patternOf is what the document says that a parameter of a list is like.
func patternOf(t *testing.T, path, name string) string {
	t.Helper()
	data, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]struct {
			Get struct {
				Parameters []struct {
					Name   string
					Schema struct{ Pattern string }
				}
			}
		}
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, p := range doc.Paths[path].Get.Parameters {
		if p.Name == name {
			return p.Schema.Pattern
		}
	}
	t.Fatalf("%s has no parameter %s", path, name)
	return ""
}
