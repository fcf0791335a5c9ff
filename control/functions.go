package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/suggest"
)

// recentInvocations is how many records a function's detail holds.
const recentInvocations = 20

// progressInterval is the least time between two events that only count bytes.
const progressInterval = 50 * time.Millisecond

func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	return answer(w, s.o.Version)
}

func (s *Server) functions(w http.ResponseWriter, r *http.Request) error {
	instances := map[string]map[api.InstanceState]int{}
	for _, i := range s.o.Node.Instances("") {
		if instances[i.Function] == nil {
			instances[i.Function] = map[api.InstanceState]int{}
		}
		instances[i.Function][i.State]++
	}
	snapshots := map[string]int{}
	all, err := s.o.Node.Snapshots(r.Context(), "")
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	for _, snap := range all {
		snapshots[snap.Function]++
	}
	list := s.o.Node.Functions()
	out := make([]api.FunctionStatus, len(list))
	for i, f := range list {
		out[i] = api.FunctionStatus{Function: f.Hide(), URL: s.url(f.Name), Instances: instances[f.Name], Snapshots: snapshots[f.Name]}
	}
	return answerPage(w, r, ofFunctions, out, functionPlace)
}

func (s *Server) url(function string) string {
	if s.o.URL == nil {
		return ""
	}
	return s.o.URL(function)
}

// find returns the function that the path names.
func (s *Server) find(name string) (api.Function, error) {
	f, ok := s.o.Node.Function(name)
	if !ok {
		return f, s.noFunction(name)
	}
	return f, nil
}

func (s *Server) noFunction(name string) error {
	var known []string
	for _, f := range s.o.Node.Functions() {
		known = append(known, f.Name)
	}
	return &api.Error{
		Status:  http.StatusNotFound,
		Message: fmt.Sprintf("there is no function %q%s", name, suggest.Text(name, known)),
		Hint:    "`skep ls` lists the functions that exist",
	}
}

// invoke hands an invocation on, if there is such a function.
func (s *Server) invoke(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r.PathValue("name")); err != nil {
		return err
	}
	s.o.Invoke.ServeHTTP(w, r)
	return nil
}

func (s *Server) function(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	tell, err := queryBool(q, "env")
	if err != nil {
		return err
	}
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	if !tell {
		f = f.Hide()
	}
	recent, err := s.o.Node.Invocations(r.Context(), api.InvocationQuery{Function: f.Name, Limit: recentInvocations})
	if err != nil {
		return fmt.Errorf("reading the invocations of %s: %w", f.Name, err)
	}
	snapshots, err := s.o.Node.Snapshots(r.Context(), f.Name)
	if err != nil {
		return fmt.Errorf("listing the snapshots of %s: %w", f.Name, err)
	}
	d := api.FunctionDetail{
		FunctionStatus: api.FunctionStatus{Function: f, URL: s.url(f.Name), Instances: map[api.InstanceState]int{}},
		InstanceList:   list(s.o.Node.Instances(f.Name)),
		SnapshotList:   list(snapshots),
		Recent:         list(recent),
	}
	for _, i := range d.InstanceList {
		d.Instances[i.State]++
	}
	d.Snapshots = len(d.SnapshotList)
	return answer(w, d)
}

// list makes sure that an empty list is [] and not null on the wire.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	if err := s.o.Node.Remove(r.Context(), f.Name); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

// deploy answers with a stream: an event a line, then the function or what went
// wrong. What is wrong with the request itself is an ordinary error.
func (s *Server) deploy(w http.ResponseWriter, r *http.Request) error {
	var f api.Function
	if err := decode(w, r, &f); err != nil {
		return err
	}
	if name := r.PathValue("name"); f.Name != name {
		return badRequest("the path names function %q, the body %q", name, f.Name)
	}
	if err := f.WithDefaults().Validate(); err != nil {
		return badRequest("%v", err)
	}
	s.stream(w, f.Name, func(progress func(api.DeployEvent)) (api.Function, error) {
		return s.o.Node.Deploy(r.Context(), f, progress)
	})
	return nil
}

// stream answers with what change tells, an event a line, and how it ended.
func (s *Server) stream(w http.ResponseWriter, name string, change func(func(api.DeployEvent)) (api.Function, error)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	lines := &lineWriter{enc: json.NewEncoder(w), rc: http.NewResponseController(w)}
	f, err := change(lines.event)
	if err != nil {
		s.log.Warn("deploy failed", "function", name, "error", err)
		e := s.asError(err)
		lines.write(api.DeployLine{Error: e})
		return
	}
	f = f.Hide()
	lines.write(api.DeployLine{Function: &f})
}

// lineWriter writes DeployLines from many goroutines, each at once.
type lineWriter struct {
	mu   sync.Mutex // guards what follows
	enc  *json.Encoder
	rc   *http.ResponseController
	last api.DeployEvent
	when time.Time // of last
}

// event passes an event on, unless it only says a few more bytes than the one
// before it, more often than a person can see.
func (l *lineWriter) event(e api.DeployEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	more := e.Stage == l.last.Stage && e.Detail == l.last.Detail && e.Took == 0 && e.Done > 0 && e.Done < e.Total
	if more && time.Since(l.when) < progressInterval {
		return
	}
	l.last, l.when = e, time.Now()
	if e.Function != nil {
		hidden := e.Function.Hide()
		e.Function = &hidden
	}
	l.writeLocked(api.DeployLine{Event: &e})
}

func (l *lineWriter) write(line api.DeployLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeLocked(line)
}

func (l *lineWriter) writeLocked(line api.DeployLine) {
	// An error means that the client has gone, which its context tells Deploy.
	_ = l.enc.Encode(line)
	_ = l.rc.Flush()
}
