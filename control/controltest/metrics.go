package controltest

import (
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
)

// Metrics returns metrics of a node with a function, in which each metric that there is
// has a series.
func Metrics() *control.Metrics {
	n := New("hello")
	n.SnapshotList = []api.Snapshot{{ID: "a", Usable: true, DiskBytes: 4096}}
	m := control.NewMetrics(n, api.Version{Version: "v1", Go: "go"}, func() int { return 3 })
	Observe(m)
	return m
}

// Observe tells the metrics of an invocation that went well, and of one that did not.
func Observe(m *control.Metrics) {
	m.Observe(api.Invocation{
		Function: "hello", Start: api.StartRestore, Status: 200, BytesIn: 5, BytesOut: 10,
		Phases: api.Phases{Spawn: 50 * time.Millisecond, Process: 250 * time.Millisecond, Total: 300 * time.Millisecond},
		Memory: &api.MemoryStats{Policy: "reap", Faults: 3, Prefetched: 1898, BytesRead: 1 << 20},
	})
	m.Observe(api.Invocation{Function: "hello", Status: 504, Failure: api.FailureTimeout, Phases: api.Phases{Total: time.Second}})
}
