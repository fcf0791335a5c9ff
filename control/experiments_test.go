package control_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// A figure can do nothing where a browser opens it by itself, and what is not to be had
// says how it is made.
func TestExperiments(t *testing.T) {
	dir := controltest.Results(t)
	if err := os.Mkdir(filepath.Join(string(dir), "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(string(dir), "half", "report.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := conforming(t, control.New(control.Options{Node: controltest.New(), Results: dir}).Handler())
	for path, want := range map[string]struct {
		status int
		says   string
	}{
		"/v1/experiments/quick/figures/fig8":             {200, "<svg"},
		"/v1/experiments/quick/figures/fig8?narrow=soon": {400, "want true or false"},
		"/v1/experiments/quick/figures/other":            {404, "skep experiment report"},
		"/v1/experiments/none/report":                    {404, "skep experiment report"},
		"/v1/experiments/..%2Fquick/report":              {404, "skep experiment report"},
		"/v1/experiments/half/report":                    {422, "skep experiment report"},
		"/v1/experiments?limit=1":                        {200, `"name":"`},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want.status || !strings.Contains(w.Body.String(), want.says) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		if strings.Contains(path, "figures") && w.Code == http.StatusOK {
			if p := w.Header().Get("Content-Security-Policy"); !strings.Contains(p, "sandbox") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("its headers are %v", w.Header())
			}
		}
		if path == "/v1/experiments?limit=1" && !strings.Contains(w.Header().Get("Link"), `rel="next"`) {
			t.Errorf("of two there is one, and no next: %v", w.Header())
		}
	}
	w := httptest.NewRecorder()
	conforming(t, control.New(control.Options{Node: controltest.New()}).Handler()).ServeHTTP(w, httptest.NewRequest("GET", "/v1/experiments", nil))
	if w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("without results: %d %s", w.Code, w.Body)
	}
}
