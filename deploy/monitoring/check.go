package monitoring

import (
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// Check asks a Prometheus, which has read a daemon that answered requests lately, all that
// the dashboard asks, and wants an answer to each, and every alert evaluated.
func Check(t *testing.T, p *testenv.Prometheus, dir string) {
	t.Helper()
	queries, err := Dashboard(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Which there are only while something is amiss, or right after a start.
	quiet := map[string]bool{"Requests that wait, by function": true, "annotation Daemon started": true}
	for _, q := range queries {
		n, _, err := p.Query(q.Chosen())
		switch {
		case err != nil:
			t.Errorf("%s: %v", q.Of, err)
		case n == 0 && !quiet[q.Of]:
			t.Errorf("%s: nothing is found by %s", q.Of, q.Chosen())
		}
	}
	alerts, err := Alerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := p.Alerts(); n != len(alerts) {
		t.Errorf("%d of %d alerts are evaluated", n, len(alerts))
	}
	t.Logf("%d queries of the dashboard are answered, %d alerts evaluated", len(queries), len(alerts))
}
