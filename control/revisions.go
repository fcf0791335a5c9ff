package control

import (
	"errors"
	"io"
	"net/http"

	"github.com/skep-dev/skep/api"
)

// set changes what the body, a JSON merge patch, names. What is wrong with the
// request itself is an ordinary error, the rest a stream like a deploy's.
func (s *Server) set(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	patch, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxRequest))
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return &api.Error{Status: http.StatusRequestEntityTooLarge, Message: "the change is larger than can be taken"}
		}
		return badRequest("reading the change: %v", err)
	}
	changed, _, err := f.Change(patch)
	if err == nil {
		err = changed.Validate()
	}
	if err != nil {
		return badRequest("%v", err)
	}
	s.stream(w, f.Name, func(progress func(api.DeployEvent)) (api.Function, error) {
		return s.o.Node.Set(r.Context(), f.Name, patch, progress)
	})
	return nil
}

func (s *Server) revisions(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	revisions, err := s.o.Node.Revisions(r.Context(), f.Name)
	if err != nil {
		return err
	}
	for i := range revisions {
		revisions[i].Function = revisions[i].Function.Hide()
	}
	return answer(w, list(revisions))
}

// maxRevision bounds the number of a revision.
const maxRevision = 1 << 31

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	var body api.RollbackRequest
	if err := decode(w, r, &body); err != nil {
		return err
	}
	if body.Revision < 0 || body.Revision > maxRevision {
		return badRequest("revision is %d: want the number of one that is kept, or 0 for the one before", body.Revision)
	}
	s.stream(w, f.Name, func(progress func(api.DeployEvent)) (api.Function, error) {
		return s.o.Node.Rollback(r.Context(), f.Name, body.Revision, progress)
	})
	return nil
}
