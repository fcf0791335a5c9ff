package control

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skep-dev/skep/api"
)

var (
	descBuild     = prometheus.NewDesc("skep_build_info", "What this daemon is; always 1.", []string{"version", "commit", "go", "vmm"}, nil)
	descFunctions = prometheus.NewDesc("skep_functions", "Functions deployed.", nil, nil)
	descInstances = prometheus.NewDesc("skep_instances", "Instances by function and state; those that are none are left out.", []string{"function", "state"}, nil)
	descQueue     = prometheus.NewDesc("skep_queue_length", "Requests that wait for an instance.", nil, nil)
	descWaiting   = prometheus.NewDesc("skep_function_queue_length", "Requests that wait for an instance, by function; those without are left out.", []string{"function"}, nil)
	descSnapshots = prometheus.NewDesc("skep_snapshots", "Published snapshots, by whether they can be used here; rollback: kept for one.", []string{"usable"}, nil)
	descHost      = prometheus.NewDesc("skep_host_memory_bytes", "Memory of the host.", nil, nil)
	descAvailable = prometheus.NewDesc("skep_host_memory_available_bytes", "Memory of the host that can be had without swapping.", nil, nil)
	descResident  = prometheus.NewDesc("skep_instances_resident_bytes", "Memory of the VMMs of a function's instances, their guests' included; those without are left out.", []string{"function"}, nil)
	descDisk      = prometheus.NewDesc("skep_snapshot_disk_bytes", "Bytes that published snapshots occupy on disk.", nil, nil)
)

// storeDescs are of the object store; a daemon without one has none.
var storeDescs = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *api.StoreStats) float64
}{
	{storeDesc("fetched_bytes_total", "Bytes read of the object store."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.Fetched) }},
	{storeDesc("requests_total", "Requests to the object store."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.Requests) }},
	{storeDesc("failed_requests_total", "Requests that the object store gave no proper answer to, after all retries."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.Failed) }},
	{storeDesc("waits_total", "Times that guests waited for memory from the object store."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.Waits) }},
	{storeDesc("wait_seconds_total", "Time that guests waited for memory from the object store."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return s.Waited.Seconds() }},
	{storeDesc("cache_hits_total", "Chunks that were found on disk."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.CacheHits) }},
	{storeDesc("cache_misses_total", "Chunks that were not found on disk."), prometheus.CounterValue, func(s *api.StoreStats) float64 { return float64(s.CacheMisses) }},
	{storeDesc("cache_bytes", "Bytes of chunks on disk."), prometheus.GaugeValue, func(s *api.StoreStats) float64 { return float64(s.CacheBytes) }},
	{storeDesc("arriving_snapshots", "Snapshots that are being fetched while instances start from them."), prometheus.GaugeValue, func(s *api.StoreStats) float64 { return float64(s.Arriving) }},
}

func storeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("skep_store_"+name, help, nil, nil)
}

// scrapeTimeout bounds what a scrape may ask of the node; a collector is given
// no context of its own.
const scrapeTimeout = 5 * time.Second

// stateCollector reads gauges from the node when it is scraped, so that they
// can be neither stale nor leaked.
type stateCollector struct {
	state   State
	version api.Version
	queue   func() int
}

func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuild, descFunctions, descInstances, descQueue, descWaiting, descSnapshots, descDisk} {
		ch <- d
	}
	if _, ok := c.state.(UsageState); ok {
		ch <- descHost
		ch <- descAvailable
		ch <- descResident
	}
	for _, d := range storeDescs {
		ch <- d.desc
	}
}

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descBuild, 1, c.version.Version, c.version.Commit, c.version.Go, c.version.VMM)
	gauge(descFunctions, float64(len(c.state.Functions())))
	if c.queue != nil {
		gauge(descQueue, float64(c.queue()))
	}
	for function, n := range c.state.Waiting() {
		if n > 0 {
			gauge(descWaiting, float64(n), function)
		}
	}
	type key struct{ function, state string }
	instances := map[key]int{}
	for _, i := range c.state.Instances("") {
		instances[key{i.Function, string(i.State)}]++
	}
	for k, n := range instances {
		gauge(descInstances, float64(n), k.function, k.state)
	}
	c.usage(gauge)
	if s, ok := c.state.(StoreState); ok {
		if stats := s.StoreStats(); stats != nil {
			for _, d := range storeDescs {
				ch <- prometheus.MustNewConstMetric(d.desc, d.kind, d.value(stats))
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	snapshots, err := c.state.Snapshots(ctx, "")
	if err != nil {
		return // no figure rather than a wrong one
	}
	var usable, unusable, kept, disk float64
	for _, s := range snapshots {
		disk += float64(s.DiskBytes)
		switch {
		case s.Usable:
			usable++
		case s.Rollback:
			kept++
		default:
			unusable++
		}
	}
	gauge(descSnapshots, usable, "true")
	gauge(descSnapshots, unusable, "false")
	gauge(descSnapshots, kept, "rollback")
	gauge(descDisk, disk)
}

// usage tells what memory is used, where that is known.
func (c *stateCollector) usage(gauge func(*prometheus.Desc, float64, ...string)) {
	state, ok := c.state.(UsageState)
	if !ok {
		return
	}
	u, err := state.Usage()
	if err != nil {
		return // no figure rather than a wrong one
	}
	gauge(descHost, float64(u.MemoryBytes))
	gauge(descAvailable, float64(u.AvailableBytes))
	resident := map[string]int64{}
	for _, i := range u.Instances {
		resident[i.Function] += i.ResidentBytes
	}
	for function, n := range resident {
		gauge(descResident, float64(n), function)
	}
}
