package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skep-dev/skep/api"
)

// handler answers a request, or returns the error that the client is to see.
// It must not have written anything when it returns one.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) wrap(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := utf8Path(r)
		if err == nil {
			err = h(w, r)
		}
		if err == nil {
			return
		}
		e := s.asError(err)
		if e.Status >= 500 && r.Context().Err() == nil {
			s.log.Warn("control request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		WriteError(w, e)
	})
}

// asError gives an error its status and hint.
func (s *Server) asError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	e = &api.Error{Status: http.StatusInternalServerError, Message: err.Error()}
	if s.o.Status != nil {
		if status, hint := s.o.Status(err); status != 0 {
			e.Status, e.Hint = status, hint
			return e
		}
	}
	switch {
	case errors.Is(err, ErrNotFound):
		e.Status = http.StatusNotFound
	case errors.Is(err, context.DeadlineExceeded):
		e.Status = http.StatusGatewayTimeout
	}
	return e
}

func badRequest(format string, args ...any) error {
	return &api.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

// utf8Path refuses a path that no JSON could name things by.
func utf8Path(r *http.Request) error {
	if !utf8.ValidString(r.URL.Path) {
		return badRequest("the path is not UTF-8")
	}
	return nil
}

// notAllowed answers a path that is there with another method.
func notAllowed(methods []string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		return &api.Error{Status: http.StatusMethodNotAllowed, Message: fmt.Sprintf("%s %s: this takes %s", r.Method, r.URL.Path, strings.Join(methods, ", "))}
	}
}

func (s *Server) unknown(_ http.ResponseWriter, r *http.Request) error {
	return &api.Error{
		Status:  http.StatusNotFound,
		Message: fmt.Sprintf("%s %s: no such call", r.Method, r.URL.Path),
		Hint:    "client and daemon may be of different versions: see `skep version`",
	}
}

func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) error {
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(v); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(buf.Bytes()) // the client may have gone; nobody is left to tell
	return nil
}

// WriteError answers with an error, for handlers beside the server's own.
func WriteError(w http.ResponseWriter, e *api.Error) {
	_ = writeJSON(w, e.Status, api.ProblemType, e) // strings and a number
}

// answer writes v as the success that it is.
func answer(w http.ResponseWriter, v any) error {
	return writeJSON(w, http.StatusOK, "application/json", v)
}

// decode reads the body strictly into v.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return &api.Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", api.MaxRequest)}
		}
		return badRequest("the body is not what is expected: %v", err)
	}
	if v == nil { // which JSON's null made of the pointer
		return badRequest("the body is null: want an object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badRequest("the body goes on after its JSON value")
	}
	return nil
}

// queryOf returns the query, whose names must be among allowed, once each.
func queryOf(r *http.Request, allowed ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("query: %v", err)
	}
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if !slices.Contains(allowed, name) {
			return nil, badRequest("query: unknown parameter %q: want %s", name, orNone(allowed))
		}
		if len(q[name]) > 1 {
			return nil, badRequest("query: %s is given %d times", name, len(q[name]))
		}
		if q.Get(name) == "" {
			return nil, badRequest("query: %s is empty: give it a value, or leave it out", name)
		}
	}
	return q, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// queryInt returns a number of the query within 0 and limit, 0 if it is absent.
func queryInt(q url.Values, name string, limit int) (int, error) {
	s := q.Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > limit {
		return 0, badRequest("query: %s is %q: want 0 to %d", name, s, limit)
	}
	return n, nil
}

func queryBool(q url.Values, name string) (bool, error) {
	s := q.Get(name)
	if s == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, badRequest("query: %s is %q: want true or false", name, s)
	}
	return b, nil
}

func queryTime(q url.Values, name string) (time.Time, error) {
	s := q.Get(name)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, badRequest("query: %s is %q: want a time such as 2026-01-31T12:00:00Z", name, s)
	}
	return t, nil
}
