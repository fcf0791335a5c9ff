package control_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

func scrape(t *testing.T, m *control.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	n := controltest.New("hello")
	n.SnapshotList = []api.Snapshot{{ID: "a", Usable: true, DiskBytes: 4096}, {ID: "b"}, {ID: "c", Rollback: true}}
	m := control.NewMetrics(n, api.Version{Version: "v1", Go: "go"}, func() int { return 3 })
	rec := api.Invocation{
		Function: "hello", Start: api.StartRestore, Status: 200, BytesOut: 10,
		Phases: api.Phases{Spawn: 50 * time.Millisecond, Total: 300 * time.Millisecond},
		Memory: &api.MemoryStats{Policy: "reap", Faults: 3, Prefetched: 1898, BytesRead: 1 << 20, Missed: 2, Wasted: -1, HandlerTime: time.Millisecond, FetchTime: 2 * time.Second, InstallTime: 3 * time.Second},
	}
	m.Observe(rec)
	m.Observe(api.Invocation{Function: "nosuch", Status: 404, Failure: api.FailureClient, Error: "no such function"})
	m.Observe(api.Invocation{Function: "hello", Status: 504, Failure: api.FailureTimeout, Phases: api.Phases{Total: time.Second}})
	text := scrape(t, m)
	for _, want := range []string{
		`skep_invocations_total{code="200",function="hello",start="restore"} 1`,
		`skep_invocations_total{code="404",function="_unknown",start="none"} 1`,
		`skep_phase_seconds_bucket{phase="spawn",start="restore",le="0.05"} 1`,
		`skep_phase_seconds_count{phase="total",start="restore"} 1`,
		`skep_memory_restores_total{function="hello",policy="reap"} 1`,
		`skep_memory_faults_total{function="hello",policy="reap"} 3`,
		`skep_memory_prefetched_pages_total{function="hello",policy="reap"} 1898`,
		`skep_memory_missed_pages_total{function="hello",policy="reap"} 2`,
		`skep_memory_wasted_pages_total{function="hello",policy="reap"} 0`,
		`skep_memory_read_bytes_total{function="hello",policy="reap"} 1.048576e+06`,
		`skep_memory_fetch_seconds_total{function="hello",policy="reap"} 2`,
		`skep_memory_install_seconds_total{function="hello",policy="reap"} 3`,
		`skep_memory_handler_seconds_total{function="hello",policy="reap"} 0.001`,
		`skep_instances{function="hello",state="idle"} 1`,
		`skep_queue_length 3`,
		`skep_snapshots{usable="true"} 1`,
		`skep_snapshots{usable="false"} 1`,
		`skep_snapshots{usable="rollback"} 1`,
		`skep_snapshot_disk_bytes 4096`,
		`skep_build_info{commit="",go="go",version="v1",vmm=""} 1`,
		`skep_failures_total{failure="client",function="_unknown"} 1`,
		`skep_failures_total{failure="timeout",function="hello"} 1`,
		`skep_invocation_seconds_count{function="hello",start="restore"} 1`,
		`skep_function_phase_seconds_sum{function="hello",phase="spawn"} 0.05`,
		`skep_function_phase_seconds_count{function="hello",phase="total"} 2`,
		`skep_function_queue_length{function="hello"} 2`,
		`skep_host_memory_available_bytes 4.294967296e+09`,
		`skep_instances_resident_bytes{function="hello"} 8.388608e+07`,
		`process_resident_memory_bytes`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	m.Forget("hello")
	left := scrape(t, m)
	for _, gauge := range []string{`skep_function_queue_length{`, `skep_instances{`, `skep_instances_resident_bytes{`} { // which the node still has
		left = strings.ReplaceAll(left, gauge+`function="hello"`, "")
	}
	if strings.Contains(left, `function="hello"`) {
		t.Error("a removed function still has a series")
	}
}

// TestMetricsAreNamedAsOthers: what Prometheus' linter says of names, kinds and helps.
func TestMetricsAreNamedAsOthers(t *testing.T) {
	text := scrape(t, controltest.Metrics())
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestNativeHistograms reads them as Prometheus does where it is told to: as protobuf.
func TestNativeHistograms(t *testing.T) {
	r := httptest.NewRequest("GET", "/metrics", nil)
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	r.Header.Set("Accept", string(format))
	w := httptest.NewRecorder()
	controltest.Metrics().Handler().ServeHTTP(w, r)
	d := expfmt.NewDecoder(w.Body, format)
	native := map[string]bool{}
	for {
		var f dto.MetricFamily
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if h := f.Metric[0].Histogram; h != nil && strings.HasPrefix(f.GetName(), "skep_") {
			native[f.GetName()] = len(h.PositiveSpan) > 0 && len(h.Bucket) > 0
		}
	}
	if want := map[string]bool{"skep_phase_seconds": true, "skep_invocation_seconds": true}; !maps.Equal(native, want) {
		t.Errorf("histograms, and whether they have buckets of both kinds: %v", native)
	}
}

func TestLabelsAreBounded(t *testing.T) {
	const bound = 2000
	var names []string
	for i := range bound + 100 {
		names = append(names, fmt.Sprintf("f%d", i))
	}
	n := controltest.New(names...)
	m := control.NewMetrics(n, api.Version{}, nil)
	for i := range bound + 100 {
		m.Observe(api.Invocation{Function: fmt.Sprintf("f%d", i), Status: 200})
		m.Observe(api.Invocation{Function: fmt.Sprintf("none%d", i), Status: 1000 + i})
	}
	text := scrape(t, m)
	if got := strings.Count(text, "\nskep_invocations_total{"); got != bound+2 {
		t.Errorf("%d series", got)
	}
	if got := strings.Count(text, "\nskep_invocation_seconds_count{"); got != 200+2 {
		t.Errorf("%d histograms", got)
	}
	if !strings.Contains(text, `function="_other",start="none"} 100`) {
		t.Error("functions beyond the bound are not summed up")
	}
}

// BenchmarkList is `skep ls` of 1,000 functions, end to end but for the process.
func BenchmarkList(b *testing.B) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("function-%d", i))
	}
	n := controltest.New(names...)
	c, _ := clientOf(b, control.Options{Node: n})
	for b.Loop() {
		if fs, err := c.Functions(b.Context()); err != nil || len(fs) != 1000 {
			b.Fatal(len(fs), err)
		}
	}
}

// storeState is a node with an object store.
type storeState struct{ control.State }

func (storeState) StoreStats() *api.StoreStats {
	return &api.StoreStats{Fetched: 1, Requests: 2, Failed: 3, Waits: 4, Waited: 5 * time.Second, CacheHits: 6, CacheMisses: 7, CacheBytes: 8, Arriving: 9}
}

func TestStoreMetrics(t *testing.T) {
	n := controltest.New("hello")
	if text := scrape(t, control.NewMetrics(n, api.Version{}, nil)); strings.Contains(text, "skep_store_fetched") {
		t.Error("figures of a store that there is not")
	}
	m := control.NewMetrics(storeState{n}, api.Version{}, nil)
	m.Observe(api.Invocation{Function: "hello", Memory: &api.MemoryStats{Policy: "stream", Remote: &api.RemoteMemory{Fetched: 10}}})
	m.Observe(api.Invocation{Function: "hello", Disk: &api.RemoteDisk{Fetched: 7}})
	text := scrape(t, m)
	for _, want := range []string{"fetched_bytes_total 1", "requests_total 2", "failed_requests_total 3", "waits_total 4", "wait_seconds_total 5",
		"cache_hits_total 6", "cache_misses_total 7", "cache_bytes 8", "arriving_snapshots 9", "first_responses_total 2", "first_response_bytes_total 17"} {
		if !strings.Contains(text, "\nskep_store_"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}
