package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/results"
)

// figurePolicy lets a figure do nothing, should a browser open it by itself: whoever
// wrote the results may have put scripts there.
const figurePolicy = "default-src 'none'; style-src 'unsafe-inline'; sandbox"

func (s *Server) experiments(w http.ResponseWriter, r *http.Request) error {
	all, err := s.o.Results.List()
	if err != nil {
		return err
	}
	return answerPage(w, r, ofExperiments, all, experimentPlace)
}

func (s *Server) report(w http.ResponseWriter, r *http.Request) error {
	report, err := s.o.Results.Report(r.PathValue("name"))
	if err != nil {
		return ofResults(err)
	}
	return answer(w, report)
}

func (s *Server) figure(w http.ResponseWriter, r *http.Request) error {
	narrow, err := queryBool(r.URL.Query(), "narrow")
	if err != nil {
		return err
	}
	b, err := s.o.Results.Figure(r.PathValue("name"), r.PathValue("figure"), narrow)
	if err != nil {
		return ofResults(err)
	}
	h := w.Header()
	h.Set("Content-Type", svgImage)
	h.Set("Content-Security-Policy", figurePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(b)
	return nil
}

// ofResults gives an error about results its status.
func ofResults(err error) error {
	const hint = "`skep experiment report DIRECTORY` makes it of the samples"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &api.Error{Status: http.StatusNotFound, Message: err.Error(), Hint: hint}
	case errors.Is(err, results.ErrMalformed):
		return &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error(), Hint: hint}
	}
	return fmt.Errorf("reading results: %w", err)
}
