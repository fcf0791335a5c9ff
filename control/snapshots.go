package control

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/skep-dev/skep/api"
)

// maxTail bounds the lines of a log that one may ask for the last of.
const maxTail = 1 << 20

// recordID is what a record's id is like, unlike a place in another list; or "".
var recordID = regexp.MustCompile("^[^:]*$")

// defaultPage is how many records a query without a limit gets.
const defaultPage = 100

func (s *Server) instances(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if name := q.Get("function"); name != "" {
		if _, err := s.find(name); err != nil {
			return err
		}
	}
	return answerPage(w, r, ofInstances, s.o.Node.Instances(q.Get("function")), instancePlace)
}

func (s *Server) snapshots(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if name := q.Get("function"); name != "" {
		if _, err := s.find(name); err != nil {
			return err
		}
	}
	all, err := s.o.Node.Snapshots(r.Context(), q.Get("function"))
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	return answerPage(w, r, ofSnapshots, all, snapshotPlace)
}

func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req api.SnapshotRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if _, err := s.find(req.Function); err != nil {
		return err
	}
	snap, err := s.o.Node.CreateSnapshot(r.Context(), req.Function)
	if err != nil {
		return err
	}
	return answer(w, snap)
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) error {
	m, err := s.o.Node.SnapshotManifest(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, m)
}

func (s *Server) snapshotMemory(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	pages, err := queryBool(q, "pages")
	if err != nil {
		return err
	}
	m, err := s.o.Node.SnapshotMemory(r.Context(), r.PathValue("id"), pages)
	if err != nil {
		return err
	}
	return answer(w, m)
}

func (s *Server) verifySnapshot(w http.ResponseWriter, r *http.Request) error {
	if err := s.o.Node.VerifySnapshot(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

func (s *Server) removeSnapshot(w http.ResponseWriter, r *http.Request) error {
	if err := s.o.Node.RemoveSnapshot(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

func (s *Server) usage(w http.ResponseWriter, _ *http.Request) error {
	u, err := s.o.Node.Usage()
	if err != nil {
		return err
	}
	return answer(w, u)
}

func (s *Server) images(w http.ResponseWriter, r *http.Request) error {
	all, err := s.o.Node.Images(r.Context())
	if err != nil {
		return err
	}
	return answer(w, list(all))
}

func (s *Server) pruneImages(w http.ResponseWriter, r *http.Request) error {
	removed, err := s.o.Node.PruneImages(r.Context())
	if err != nil {
		return err
	}
	return answer(w, list(removed))
}

func (s *Server) invocations(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	want := api.InvocationQuery{
		ID: q.Get("id"), Function: q.Get("function"), Instance: q.Get("instance"), Status: q.Get("status"),
		Failure: api.Failure(q.Get("failure")), Start: api.StartKind(q.Get("start")), After: q.Get("after"),
	}
	var err error
	if s := q.Get("slower_than"); s != "" {
		var d api.Duration
		if err := d.UnmarshalText([]byte(s)); err != nil {
			return badRequest("query: slower_than: %v", err)
		}
		want.Slower = d.D()
	}
	if err := want.Validate(); err != nil {
		return badRequest("query: %v", err)
	}
	if !recordID.MatchString(want.After) {
		return badRequest("query: after is %.80q: want the id of a record, as the Link header of the page before has it", want.After)
	}
	if want.Until, err = queryTime(q, "until"); err != nil {
		return err
	}
	if want.Limit, err = queryInt(q, "limit", maxPage); err != nil {
		return err
	}
	if want.Since, err = queryTime(q, "since"); err != nil {
		return err
	}
	recs, err := s.o.Node.Invocations(r.Context(), want)
	if err != nil {
		return fmt.Errorf("reading invocations: %w", err)
	}
	if n := len(recs); n > 0 && n == cmp.Or(want.Limit, defaultPage) {
		linkNext(w, r, recs[n-1].ID)
	}
	return answer(w, list(recs))
}

func (s *Server) invocation(w http.ResponseWriter, r *http.Request) error {
	rec, err := s.o.Node.Invocation(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, rec)
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var err error
	want := api.LogQuery{Function: r.PathValue("name"), Instance: q.Get("instance"), Invocation: q.Get("invocation")}
	if want.Tail, err = queryInt(q, "tail", maxTail); err != nil {
		return err
	}
	if want.Since, err = queryTime(q, "since"); err != nil {
		return err
	}
	if want.Follow, err = queryBool(q, "follow"); err != nil {
		return err
	}
	if _, err := s.find(want.Function); err != nil {
		return err
	}
	out := &flusher{w: w, rc: http.NewResponseController(w)}
	if want.Follow {
		if err := out.start(); err != nil { // the client knows at once that it is connected
			return nil
		}
	}
	ctx, cancel := s.untilClosed(r.Context())
	defer cancel()
	err = s.o.Node.Logs(ctx, want, out)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	if out.started {
		// Half an answer must not look like a whole one.
		s.log.Warn("logs broke off", "function", want.Function, "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// flusher sends every write to the client at once.
type flusher struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	started bool
}

func (f *flusher) start() error {
	f.started = true
	f.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	f.w.WriteHeader(http.StatusOK)
	return f.rc.Flush()
}

func (f *flusher) Write(b []byte) (int, error) {
	if !f.started {
		if err := f.start(); err != nil {
			return 0, err
		}
	}
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.rc.Flush()
}

var _ io.Writer = (*flusher)(nil)
