package control

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skep-dev/skep/api"
)

// Labels of invocations that name no function that exists, or one too many.
const (
	unknownFunction = "_unknown"
	otherFunctions  = "_other"
)

// maxFunctionLabels bounds how many functions have series of their own,
// maxTimedFunctions how many of those have a histogram.
const (
	maxFunctionLabels = 2000
	maxTimedFunctions = 200
)

// phaseBuckets are seconds: 100 µs to 30 s.
var phaseBuckets = []float64{
	100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10, 30,
}

// Native histograms have buckets of their own, each 10% wider than the one before, of
// which a series keeps so many at most; Prometheus reads them where it is told to
// (native-histograms). Others read the buckets above.
const (
	nativeFactor   = 1.1
	nativeBuckets  = 160
	nativeLifetime = time.Hour // at least, before a series with more of them begins anew
)

// inSeconds are the options of a histogram of seconds.
func inSeconds(name, help string) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: phaseBuckets,
		NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: nativeBuckets, NativeHistogramMinResetDuration: nativeLifetime,
	}
}

// State is what the gauges are read from at each scrape.
type State interface {
	Functions() []api.Function
	Function(name string) (api.Function, bool)
	Instances(function string) []api.Instance
	// Waiting counts the requests that wait for an instance, by function; those
	// without any may be left out.
	Waiting() map[string]int
	Snapshots(ctx context.Context, function string) ([]api.Snapshot, error)
}

// UsageState is a State that knows what memory the host and the instances use.
type UsageState interface {
	Usage() (api.Usage, error)
}

// StoreState is a State that may have an object store.
type StoreState interface {
	StoreStats() *api.StoreStats // nil: none
}

// Metrics counts invocations and answers /metrics. Observe it every record.
type Metrics struct {
	registry    *prometheus.Registry
	invocations *prometheus.CounterVec   // function, start, code
	phases      *prometheus.HistogramVec // phase, start
	bytes       *prometheus.CounterVec   // direction
	failures    *prometheus.CounterVec   // function, failure
	totals      *prometheus.HistogramVec // function, start; of few functions
	byFunction  *prometheus.SummaryVec   // function, phase; sums and counts alone
	memory      memoryCounters
	remote      remoteCounters

	mu     sync.Mutex // guards labels and timed
	labels map[string]struct{}
	timed  map[string]struct{} // those of labels that have a histogram
	state  State
}

// memoryCounters are what guest memory cost restores. A function has few
// policies, so that its series are few.
type memoryCounters struct {
	restores, faults, prefetched, zero, ahead, missed, wasted, read, fetch, install, handler *prometheus.CounterVec // function, policy
}

func (c memoryCounters) all() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{c.restores, c.faults, c.prefetched, c.zero, c.ahead, c.missed, c.wasted, c.read, c.fetch, c.install, c.handler}
}

// remoteCounters are of instances that started before all of their snapshot, or of their root disk, was here.
type remoteCounters struct{ starts, bytes prometheus.Counter }

func newRemoteCounters() remoteCounters {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "skep_store_" + name + "_total", Help: help})
	}
	return remoteCounters{
		starts: counter("first_responses", "First responses of instances that started while their snapshot or root disk was being fetched."),
		bytes:  counter("first_response_bytes", "Bytes of snapshot and root disk that had come from the object store by those responses."),
	}
}

func newMemoryCounters() memoryCounters {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skep_memory_" + name + "_total", Help: help}, []string{"function", "policy"})
	}
	return memoryCounters{
		restores:   counter("restores", "Invocations that a restored guest was started for."),
		faults:     counter("faults", "Page faults of restored guests that were served."),
		prefetched: counter("prefetched_pages", "Pages installed before they were asked for: of working sets, and beside misses."),
		zero:       counter("zero_pages", "Pages of zeros among those installed."),
		ahead:      counter("zeroed_ahead_pages", "Pages of zeros installed beside those, where guests took memory that the snapshot does not hold."),
		missed:     counter("missed_pages", "Pages touched on the way to a first response that were not in the working set."),
		wasted:     counter("wasted_pages", "Prefetched pages not touched on the way to a first response, estimated from samples."),
		read:       counter("read_bytes", "Bytes of snapshot memory read."),
		fetch:      counter("fetch_seconds", "Time spent reading working sets; it may overlap the start of the VMM."),
		install:    counter("install_seconds", "Time spent putting pages into guests."),
		handler:    counter("handler_seconds", "Time spent serving page faults."),
	}
}

// NewMetrics returns metrics whose gauges are read from state; queue, when not
// nil, returns the number of requests that wait in all queues.
func NewMetrics(state State, v api.Version, queue func() int) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry:    prometheus.NewRegistry(),
		invocations: counter("skep_invocations_total", "Invocations by function, by how their instance started, and by HTTP status class.", "function", "start", "code"),
		phases:      prometheus.NewHistogramVec(inSeconds("skep_phase_seconds", "Duration of each phase of an invocation."), []string{"phase", "start"}),
		bytes:       counter("skep_bytes_total", "Bytes of request and response bodies.", "direction"),
		failures:    counter("skep_failures_total", "Invocations without a complete answer, by whose doing that is: client, queue, timeout, function, platform.", "function", "failure"),
		totals: prometheus.NewHistogramVec(inSeconds("skep_invocation_seconds",
			"Request in to response out, by function and by how the instance started; functions beyond the first 200 are summed up."), []string{"function", "start"}),
		byFunction: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "skep_function_phase_seconds", Help: "Time that a function's invocations spent in each phase: sum, and how many had it.",
		}, []string{"function", "phase"}),
		timed:  map[string]struct{}{},
		memory: newMemoryCounters(),
		remote: newRemoteCounters(),
		labels: map[string]struct{}{},
		state:  state,
	}
	m.registry.MustRegister(m.remote.starts, m.remote.bytes, m.invocations, m.phases, m.bytes, m.failures, m.totals, m.byFunction,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&stateCollector{state: state, version: v, queue: queue})
	for _, c := range m.memory.all() {
		m.registry.MustRegister(c)
	}
	return m
}

// Observe counts one invocation. It is cheap enough for every request.
func (m *Metrics) Observe(rec api.Invocation) {
	start := string(rec.Start)
	if start == "" {
		start = "none"
	}
	function := m.label(rec.Function)
	m.invocations.WithLabelValues(function, start, code(rec.Status)).Inc()
	m.bytes.WithLabelValues("in").Add(float64(max(rec.BytesIn, 0)))
	m.bytes.WithLabelValues("out").Add(float64(max(rec.BytesOut, 0)))
	if rec.Failure != "" {
		m.failures.WithLabelValues(function, string(rec.Failure)).Inc()
	}
	m.totals.WithLabelValues(m.timedLabel(function), start).Observe(rec.Phases.Total.Seconds())
	rec.Phases.Each(func(name string, d time.Duration) {
		if d > 0 {
			m.byFunction.WithLabelValues(function, name).Observe(d.Seconds())
			m.phases.WithLabelValues(name, start).Observe(d.Seconds())
		}
	})
	if s := rec.Memory; s != nil {
		m.memory.add(function, *s)
	}
	m.remote.add(rec)
}

func (c remoteCounters) add(rec api.Invocation) {
	var fetched int64
	remote := rec.Disk != nil
	if remote {
		fetched = rec.Disk.Fetched
	}
	if rec.Memory != nil && rec.Memory.Remote != nil {
		remote = true
		fetched += rec.Memory.Remote.Fetched
	}
	if remote {
		c.starts.Inc()
		c.bytes.Add(float64(fetched))
	}
}

func (c memoryCounters) add(function string, s api.MemoryStats) {
	add := func(v *prometheus.CounterVec, n float64) { v.WithLabelValues(function, s.Policy).Add(max(n, 0)) }
	add(c.restores, 1)
	add(c.faults, float64(s.Faults))
	add(c.prefetched, float64(s.Prefetched))
	add(c.zero, float64(s.ZeroPages))
	add(c.ahead, float64(s.ZeroedAhead))
	add(c.missed, float64(s.Missed))
	add(c.wasted, float64(s.Wasted)) // -1, not known, adds nothing
	add(c.read, float64(s.BytesRead))
	add(c.fetch, s.FetchTime.Seconds())
	add(c.install, s.InstallTime.Seconds())
	add(c.handler, s.HandlerTime.Seconds())
}

// code is the label of an HTTP status: the status itself where clients branch
// on it, its class otherwise.
func code(status int) string {
	switch {
	case status == 200 || status == 404 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504:
		return strconv.Itoa(status)
	case status >= 100 && status < 600:
		return strconv.Itoa(status/100) + "xx"
	}
	return "none"
}

// label returns the function's label value, and keeps their number bounded.
func (m *Metrics) label(function string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.labels[function]; ok {
		return function
	}
	_, exists := m.state.Function(function)
	switch {
	case !exists:
		return unknownFunction
	case len(m.labels) >= maxFunctionLabels:
		return otherFunctions
	}
	m.labels[function] = struct{}{}
	return function
}

// timedLabel returns the label value of a function's histogram.
func (m *Metrics) timedLabel(label string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.timed[label]; ok || label == unknownFunction {
		return label
	}
	if _, ok := m.labels[label]; !ok || len(m.timed) >= maxTimedFunctions {
		return otherFunctions
	}
	m.timed[label] = struct{}{}
	return label
}

// Forget drops the series of a function that has been removed.
func (m *Metrics) Forget(function string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.labels, function)
	delete(m.timed, function)
	own := prometheus.Labels{"function": function}
	for _, c := range append(m.memory.all(), m.invocations, m.failures) {
		c.DeletePartialMatch(own)
	}
	m.totals.DeletePartialMatch(own)
	m.byFunction.DeletePartialMatch(own)
}

// Handler answers /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, MaxRequestsInFlight: 4})
}
