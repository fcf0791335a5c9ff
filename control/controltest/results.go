package controltest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/results"
)

// Results makes a directory with the results of one run, named quick, that somebody has
// put into what they could: its texts are markup, its figure has scripts.
func Results(t testing.TB) results.Dir {
	t.Helper()
	dir := t.TempDir()
	const markup = `<img src=x onerror="throw 'ran'"><script>throw 'ran'</script>`
	b, err := json.Marshal(api.Report{Title: markup, VMM: "qemu", Sections: []api.ReportSection{{
		Name: "policies", Figure: "Figure 8", Title: markup, Question: markup, Findings: []string{markup}, Caveats: []string{markup},
		Figures: []api.ReportFigure{{Name: "fig8", Title: markup, Caption: markup}, {Name: "none"}},
		Tables:  []api.ReportTable{{Name: "fig8", Head: []string{"function", markup}, Rows: [][]string{{"pyaes", markup}, {}}}},
	}, {Name: "../../functions", Title: "odd"}}})
	if err != nil {
		t.Fatal(err)
	}
	svg := []byte(`<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10" onload="throw 'ran'"><script>throw 'ran'</script>` +
		`<image href="http://192.0.2.1/a.png" width="9" height="9"/><style>@import url(http://192.0.2.1/a.css);</style><rect width="20" height="10"/></svg>`)
	for name, text := range map[string][]byte{
		results.ReportFile: b, filepath.Join(results.Figures, "fig8.svg"): svg, filepath.Join(results.Figures, "fig8-narrow.svg"): svg,
	} {
		path := filepath.Join(dir, "quick", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return results.Dir(dir)
}
