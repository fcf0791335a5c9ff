package monitoring

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/skep-dev/skep/control/controltest"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestOnlyMetricsThatThereAre: dashboard and alerts name no metric, and no label, that the
// daemon does not export.
func TestOnlyMetricsThatThereAre(t *testing.T) {
	w := httptest.NewRecorder()
	controltest.Metrics().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	exported := map[string]bool{"up": true} // Prometheus' own
	labels := map[string]bool{"job": true, "instance": true}
	for _, line := range strings.Split(w.Body.String(), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		exported[line[:strings.IndexAny(line, "{ ")]] = true
		for _, m := range regexp.MustCompile(`[{,](\w+)="`).FindAllStringSubmatch(line, -1) {
			labels[m[1]] = true
		}
	}
	dashboard, err := Dashboard(".")
	if err != nil {
		t.Fatal(err)
	}
	alerts, err := Alerts(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(dashboard) < 30 || len(alerts) < 10 {
		t.Errorf("%d queries, %d alerts", len(dashboard), len(alerts))
	}
	named := regexp.MustCompile(`(\w+) *(?:=~|!~|!=|=) *"`)
	grouped := regexp.MustCompile(`\b(?:by|ignoring|on) *\(([^)]*)\)`)
	for _, q := range append(dashboard, alerts...) {
		if len(q.Metrics()) == 0 {
			t.Errorf("%s names no metric: %s", q.Of, q.Expr)
		}
		for _, m := range q.Metrics() {
			if !exported[m] {
				t.Errorf("%s names %s, which the daemon does not export", q.Of, m)
			}
		}
		var used []string
		for _, m := range named.FindAllStringSubmatch(q.Expr, -1) {
			used = append(used, m[1])
		}
		for _, m := range grouped.FindAllStringSubmatch(q.Expr, -1) {
			used = append(used, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
		}
		for _, l := range used {
			if !labels[l] {
				t.Errorf("%s has the label %s, which no metric has", q.Of, l)
			}
		}
		if strings.Contains(q.Chosen(), "$") {
			t.Errorf("%s has a variable that there is not: %s", q.Of, q.Chosen())
		}
	}
}

// TestAlerts has Prometheus' own tool check the alerts, and run what they fire at and what
// they do not.
func TestAlerts(t *testing.T) {
	alerts, err := Alerts(".")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		if n := strings.Count(string(tests), "alertname: "+a.Of+"\n"); n < 2 {
			t.Errorf("%s has %d tests: want one that it fires at and one that it does not", a.Of, n)
		}
	}
	promtool, err := exec.LookPath("promtool")
	testenv.NeedThat(t, "prometheus", err, "apt-get install prometheus")
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// TestPrometheus has a real Prometheus read what the daemon exports, of a node without
// machines: every query of the dashboard has an answer, and histograms are native for who
// wants that.
func TestPrometheus(t *testing.T) {
	m := controltest.Metrics()
	server := httptest.NewServer(m.Handler())
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	p := testenv.StartPrometheus(t, address, "alerts.yaml")
	native := testenv.StartPrometheus(t, address, "alerts.yaml", "--enable-feature=native-histograms")
	p.Sees(`skep_memory_restores_total`)
	controltest.Observe(m) // after a scrape, so that there are rates
	p.Sees(`increase(skep_invocations_total[1m]) > 0`)
	p.Sees(`increase(skep_failures_total[1m]) > 0`)
	Check(t, p, ".")
	if got := native.Sees(`histogram_quantile(0.5, sum by (start) (skep_invocation_seconds{function="hello", start="restore"}))`); !strings.Contains(got, "restore") {
		t.Errorf("the median of native histograms is %s", got)
	}
	testenv.CheckMetrics(t, body(t, server.URL))
}

func body(t *testing.T, url string) string {
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
