package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control/controltest"
)

// The medians of each setting, the microVMs of each herd counted once, and the
// ratio of the medians.
func TestHerdTable(t *testing.T) {
	var samples []herdSample
	for run := range 2 {
		for i := range 3 {
			samples = append(samples,
				herdSample{Run: run, MaxInstances: 1, Latency: time.Duration(20*(i+1)) * time.Millisecond},
				herdSample{Run: run, MaxInstances: 8, Latency: time.Duration(60*(i+1)) * time.Millisecond, Started: run + 2})
		}
	}
	rows := herdTable(samples, 8)
	want := [][]string{
		{"1", "2", "0", millis(40 * time.Millisecond)},
		{"8", "2", "5", millis(120 * time.Millisecond)},
		{"ratio", "", "", "3.00"},
	}
	if len(rows) != 4 {
		t.Fatalf("%q", rows)
	}
	for i, w := range want {
		if !slices.Equal(rows[i+1][:4], w) {
			t.Errorf("row %d is %q, want %q", i, rows[i+1], w)
		}
	}
}

// herdNode is a node that starts an instance for each request that finds none
// free, as far as the function may have more.
type herdNode struct {
	*controltest.Node
	requests int // that a herd has: none is answered before all are there

	mu        sync.Mutex // guards what follows
	herd      bool       // the last change was to max_instances alone
	max, made int
	instances []api.Instance
	records   map[string]api.Invocation
	warm      []string // for each herd, the instances that were there when it began
	inFlight  int
	all       chan struct{} // closed when a herd is all there
}

func (n *herdNode) Set(ctx context.Context, name string, patch []byte, progress func(api.DeployEvent)) (api.Function, error) {
	f, err := n.Node.Set(ctx, name, patch, progress)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.herd, n.max = !strings.Contains(string(patch), "keep_alive"), f.MaxInstances
	if n.herd {
		var ids []string
		for _, i := range n.instances {
			ids = append(ids, i.ID)
		}
		n.warm = append(n.warm, strings.Join(ids, " "))
		n.all, n.inFlight = make(chan struct{}), 0
	}
	return f, err
}

// Instances lets one instance go at each look, where none is to be kept.
func (n *herdNode) Instances(name string) []api.Instance {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f, _ := n.Function(name); f.KeepAlive.D() == time.Millisecond && len(n.instances) > 0 {
		n.instances = n.instances[1:]
	}
	return slices.Clone(n.instances)
}

func (n *herdNode) Invocation(_ context.Context, id string) (api.Invocation, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.records[id], nil
}

// serve lends an instance; of those that a herd had started, it lets the first go
// as soon as it has served.
func (n *herdNode) serve(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	rec := api.Invocation{ID: fmt.Sprint("r", len(n.records)), Start: api.StartWarm, Status: 200}
	if len(n.instances) == 0 || n.herd && n.inFlight > 0 && len(n.instances) < n.max {
		n.made++
		rec.Start = api.StartRestore
		n.instances = append(n.instances, api.Instance{ID: fmt.Sprint("i", n.made), Function: "bench", State: api.InstanceIdle})
	}
	rec.Instance = n.instances[len(n.instances)-1].ID
	n.records[rec.ID] = rec
	herd, all := n.herd, n.all
	if n.inFlight++; herd && n.inFlight == n.requests {
		if len(n.instances) > 1 {
			n.instances = slices.Delete(n.instances, 1, 2)
		}
		close(all)
	}
	n.mu.Unlock()
	if herd {
		select {
		case <-all:
		case <-r.Context().Done():
		}
	}
	w.Header().Set(api.HeaderInvocation, rec.ID)
}

// Each herd meets exactly one warm instance, whatever the one before has left,
// and all that was started for it is counted, though it may have ended.
func TestHerdRounds(t *testing.T) {
	n := &herdNode{Node: controltest.New("bench"), requests: 4, records: map[string]api.Invocation{}}
	client := api.NewClient(api.ClientOptions{Socket: serveControl(t, n, http.HandlerFunc(n.serve))})
	defer client.Close()
	m := &measurement{client: client, function: "bench", path: "/"}
	for run := range 2 {
		for _, most := range []int{1, 3} {
			samples, err := m.herd(t.Context(), run, n.requests, most)
			if err != nil || len(samples) != n.requests {
				t.Fatalf("run %d, at most %d: %d samples, %v", run, most, len(samples), err)
			}
			for _, s := range samples {
				if s.Run != run || s.MaxInstances != most || s.Started != most-1 || s.Latency <= 0 || s.Record.Instance == "" {
					t.Errorf("run %d, at most %d: %+v", run, most, s)
				}
			}
		}
	}
	if want := []string{"i1", "i2", "i5", "i6"}; !slices.Equal(n.warm, want) {
		t.Errorf("the herds met %q, want %q", n.warm, want)
	}
}

// A herd that would not meet one warm instance is not measured.
func TestHerdWantsOneWarm(t *testing.T) {
	n := &herdNode{Node: controltest.New("bench"), requests: 1, records: map[string]api.Invocation{}}
	dies := func(w http.ResponseWriter, r *http.Request) {
		n.serve(w, r)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.instances = nil
	}
	client := api.NewClient(api.ClientOptions{Socket: serveControl(t, n, http.HandlerFunc(dies))})
	defer client.Close()
	m := &measurement{client: client, function: "bench", path: "/"}
	if _, err := m.herd(t.Context(), 0, 1, 3); err == nil || !strings.Contains(err.Error(), "bench has 0 instances") {
		t.Errorf("no warm instance: %v", err)
	}
}
