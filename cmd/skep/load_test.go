package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skep-dev/skep/load"
)

// Calls go to a URL by a rate and by a trace; results are in files, and are compared.
func TestLoadVerb(t *testing.T) {
	var calls, refuse atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1); refuse.Load() > 0 {
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
		w.Header().Set("Skep-Start", "warm")
	}))
	t.Cleanup(server.Close)
	url := server.URL + "/{function}?ms={ms}"
	dir := t.TempDir()
	a, b, small := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "trace")
	if code, _, errs := skep(t, "", "workload", "make", "--functions", "20", "--minutes", "2", "--rate", "0.01", small); code != 0 {
		t.Fatal(errs)
	}
	code, out, errs := skep(t, "", "load", "--source", "constant:rate=200", "--duration", "200ms", "--url", url, "--out", a, "--json")
	if code != 0 {
		t.Fatal(errs)
	}
	var r load.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Done != 40 || r.Lost != 0 || calls.Load() != 40 {
		t.Errorf("%v: %+v of %d calls", err, r, calls.Load())
	}
	code, out, errs = skep(t, "", "load", small, "--speed", "600", "--url", url, "--out", b)
	if code != 0 || !strings.Contains(out, "latency ms") || !strings.Contains(errs, "in_flight=0") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
	for _, file := range []string{load.SamplesFile, load.DatabaseFile} {
		if _, err := os.Stat(filepath.Join(b, file)); err != nil {
			t.Error(err)
		}
	}
	for _, args := range [][]string{{"load", "--compare", a + "," + b}, {"load", "--compare", a + "," + b, "--json"}} {
		if code, out, errs = skep(t, "", args...); code != 0 || !strings.Contains(out, "warm") {
			t.Errorf("%v: %d: %s%s", args, code, out, errs)
		}
	}
	refuse.Store(1)
	if code, _, errs = skep(t, "", "load", "--source", "constant:rate=200", "--duration", "20ms", "--url", url, "--out", filepath.Join(dir, "c")); code != 1 || !strings.Contains(errs, "4 of 4 calls were lost") {
		t.Errorf("refused: %d: %s", code, errs)
	}
	for _, args := range [][]string{
		{"load"}, {"load", "--out", dir}, {"load", small, "--source", "poisson", "--out", dir}, {"load", "--source", "poisson:speed=1", "--out", dir}, {"load", "--compare", a},
		{"load", "--source", "poisson", "--url", url, "--deploy", "--out", dir},
	} {
		if code, _, errs := skep(t, "", args...); code != 2 {
			t.Errorf("%v: %d: %s", args, code, errs)
		}
	}
}

// A Knative service is called at its ingress, by a Host header: what the server says of
// starts is not known then, and said so.
func TestLoadByHost(t *testing.T) {
	hosts := map[string]int{}
	var mu sync.Mutex // guards hosts
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		hosts[r.Host]++
		if r.URL.Path != "/work" || r.FormValue("ms") == "" {
			http.Error(w, "what is this", http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	small := filepath.Join(dir, "trace")
	if code, _, errs := skep(t, "", "workload", "make", "--functions", "40", "--minutes", "2", "--rate", "0.1", small); code != 0 {
		t.Fatal(errs)
	}
	code, out, errs := skep(t, "", "load", small, "--speed", "600", "--url", server.URL+"/work?ms={ms}", "--host", "{function}.default.example.com", "--out", filepath.Join(dir, "a"), "--json")
	var r load.Report
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r.Done == 0 || r.Lost != 0 || r.Untold != r.Done || r.Slowdown.P50 <= 0 {
		t.Fatalf("%d: %+v %s", code, r, errs)
	}
	calls := 0
	for host, n := range hosts {
		if !strings.HasPrefix(host, "load-") || !strings.HasSuffix(host, ".default.example.com") {
			t.Errorf("called with the Host %s", host)
		}
		calls += n
	}
	if calls != r.Done || len(hosts) < 2 {
		t.Errorf("%d calls of %d were there, of %v", calls, r.Done, hosts)
	}
}
