package test

import (
	"io"
	"net/http"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/deploy/monitoring"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestMonitoring has a real Prometheus read a real daemon: its tool finds nothing to say of
// the metrics, every query of the dashboard has an answer, and every alert can be evaluated.
func TestMonitoring(t *testing.T) {
	metrics := testenv.FreeAddress(t)
	p := testenv.StartPrometheus(t, metrics, "../deploy/monitoring/alerts.yaml")
	d := start(t, "metrics_listen = '"+metrics+"'")
	d.hello("hello")
	d.hello("slow", "--timeout", "1s")
	call := func() {
		for _, r := range []api.InvokeRequest{
			{Function: "hello", Start: api.StartRestore, Policy: "reap"}, {Function: "hello"},
			{Function: "hello", Start: api.StartBoot},
		} {
			if a := d.invoke(r); a.err != nil || a.status != 200 {
				t.Fatalf("%+v: %+v", r, a)
			}
		}
		if a := d.get("slow", "/sleep?ms=5000"); a.err != nil || a.status != 504 {
			t.Fatalf("a request over the timeout: %+v", a)
		}
	}
	call()
	p.Sees(`skep_invocations_total{start="boot"}`)
	call() // after a scrape, so that there are rates
	p.Sees(`increase(skep_invocations_total{start="boot"}[1m]) > 0`)
	p.Sees(`increase(skep_failures_total[1m]) > 0`)
	monitoring.Check(t, p, "../deploy/monitoring")

	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	testenv.CheckMetrics(t, string(text))
}
