// Package controltest has a node without machines, for tests of the control API
// and of what speaks to it.
package controltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/internal/feed"
)

// Node keeps functions in memory. Its fields are set before it is used.
type Node struct {
	SnapshotList       []api.Snapshot
	Records            []api.Invocation
	Followed           chan struct{} // closed when the first follow has ended
	Unhealthy, Unready error
	DeployErr          error               // what Deploy returns
	Query              api.InvocationQuery // the last one; written by it
	Bytes              int                 // progress events that Deploy sends
	// Visits returns the instance's end of a visit; nil: nothing runs.
	Visits func(function, instance string) (control.Visit, error)

	// Happened is the feed of what Events reads, with the number of each as its id.
	Happened *feed.Feed[api.Event]

	ended     sync.Once  // of Followed
	mu        sync.Mutex // guards what follows
	functions map[string]api.Function
	revisions []api.Revision // newest first
	made      int            // snapshots
}

var _ control.Node = (*Node)(nil)

// New returns a node with the named functions.
func New(functions ...string) *Node {
	n := &Node{functions: map[string]api.Function{}, Followed: make(chan struct{}), Happened: feed.New[api.Event](100)}
	for _, name := range functions {
		n.functions[name] = api.Function{Name: name, Image: "dir:/" + name}.WithDefaults()
	}
	return n
}

func (n *Node) Visit(_ context.Context, function, instance string) (control.Visit, error) {
	if n.Visits == nil {
		return nil, fmt.Errorf("%s%s: %w", function, instance, control.ErrNotFound)
	}
	return n.Visits(function, instance)
}

// Usage says that half of the host's memory is used, a part of it by i1.
func (n *Node) Usage() (api.Usage, error) {
	return api.Usage{MemoryBytes: 8 << 30, AvailableBytes: 4 << 30, Waiting: n.Waiting(),
		Instances: []api.InstanceUsage{{ID: "i1", Function: "hello", ResidentBytes: 80 << 20}}}, nil
}

type events struct {
	r      *feed.Reader[api.Event]
	resync bool
}

// Events begins with an EventResync unless it goes on after an event that there was.
func (n *Node) Events(after string) control.Events {
	number, err := strconv.ParseUint(after, 10, 64)
	if err != nil {
		number = n.Happened.Last()
	}
	r, ok := n.Happened.After(number)
	return &events{r, err != nil || !ok}
}

func (e *events) Next(ctx context.Context) (api.Event, error) {
	var ev api.Event
	var err error
	if !e.resync {
		ev, err = e.r.Next(ctx)
	}
	if e.resync || errors.Is(err, feed.ErrLost) {
		e.resync = false
		ev, err = api.Event{Kind: api.EventResync}, nil
	}
	ev.ID = strconv.FormatUint(e.r.Last(), 10)
	return ev, err
}

func (n *Node) Deploy(_ context.Context, f api.Function, progress func(api.DeployEvent)) (api.Function, error) {
	progress(api.DeployEvent{Stage: api.StagePulling, Total: int64(n.Bytes)})
	for i := range n.Bytes {
		progress(api.DeployEvent{Stage: api.StagePulling, Done: int64(i), Total: int64(n.Bytes)})
	}
	progress(api.DeployEvent{Stage: api.StageDone, Took: time.Second})
	if n.DeployErr != nil {
		return api.Function{}, n.DeployErr
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.put(f, "deploy"), nil
}

// put makes f the function of its name. The mutex is held.
func (n *Node) put(f api.Function, change string) api.Function {
	f = f.WithDefaults()
	f.ImageDigest, f.Revision = "sha256:1234", n.functions[f.Name].Revision+1
	n.functions[f.Name] = f
	n.revisions = append([]api.Revision{{Number: f.Revision, Change: change, Image: f.Image, Digest: f.ImageDigest, Function: f}}, n.revisions...)
	return f
}

func (n *Node) Set(_ context.Context, name string, patch []byte, progress func(api.DeployEvent)) (api.Function, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, names, err := n.functions[name].Change(patch)
	if err != nil {
		return f, err
	}
	f = n.put(f, "set "+strings.Join(names, ", "))
	progress(api.DeployEvent{Stage: api.StageDone, Function: &f})
	return f, nil
}

func (n *Node) Rollback(_ context.Context, name string, revision int, _ func(api.DeployEvent)) (api.Function, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.revisions {
		if r.Function.Name == name && (r.Number == revision || revision == 0 && r.Number < n.functions[name].Revision) {
			return n.put(r.Function, fmt.Sprint("rollback to ", r.Number)), nil
		}
	}
	return api.Function{}, fmt.Errorf("function %q, revision %d: %w", name, revision, control.ErrNotFound)
}

func (n *Node) Revisions(_ context.Context, name string) ([]api.Revision, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []api.Revision
	for _, r := range n.revisions {
		if r.Function.Name == name {
			r.Current = r.Number == n.functions[name].Revision
			out = append(out, r)
		}
	}
	return out, nil
}

func (n *Node) Healthy(context.Context) error { return n.Unhealthy }
func (n *Node) Ready(context.Context) error   { return errors.Join(n.Unready, n.Unhealthy) }

// Waiting says that two requests wait for hello.
func (n *Node) Waiting() map[string]int { return map[string]int{"hello": 2} }

func (n *Node) Functions() []api.Function {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []api.Function
	for _, f := range n.functions {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b api.Function) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (n *Node) Function(name string) (api.Function, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, ok := n.functions[name]
	return f, ok
}

func (n *Node) Remove(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.functions, name)
	return nil
}

func (n *Node) Instances(function string) []api.Instance {
	if function == "none" {
		return nil
	}
	return []api.Instance{{ID: "i1", Function: "hello", State: api.InstanceIdle}, {ID: "i2", Function: "hello", State: api.InstanceBusy}}
}

func (n *Node) Snapshots(context.Context, string) ([]api.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.SnapshotList), nil
}

func (n *Node) SnapshotManifest(_ context.Context, id string) (any, error) {
	for _, s := range n.SnapshotList {
		if s.ID == id {
			return map[string]string{"id": id}, nil
		}
	}
	return nil, fmt.Errorf("snapshot %q: %w", id, control.ErrNotFound)
}

func (n *Node) SnapshotMemory(_ context.Context, id string, pages bool) (api.SnapshotMemory, error) {
	for _, s := range n.SnapshotList {
		if s.ID == id {
			return snapshotMemory(s, pages), nil
		}
	}
	return api.SnapshotMemory{}, fmt.Errorf("snapshot %q: %w", id, control.ErrNotFound)
}

// snapshotMemory is of a guest of 1 MiB with a trace of five pages, a working
// set of four of them, and nothing learned that can be read.
func snapshotMemory(s api.Snapshot, pages bool) api.SnapshotMemory {
	m := api.SnapshotMemory{
		Snapshot: s.ID, Function: s.Function, Policy: "stream", MemoryBytes: 1 << 20, DataPages: 128,
		Trace:      api.PageFile{FileBytes: 200, Summary: &api.PageSummary{Pages: 5, Runs: 2, Contiguity: 2.5, LongestRun: 4, Reads: 3, Writes: 2, First: time.Millisecond, Span: 9 * time.Millisecond}},
		WorkingSet: api.PageFile{FileBytes: 20480, Summary: &api.PageSummary{Pages: 4, ZeroPages: 1, Runs: 1, Contiguity: 4, LongestRun: 4, ZeroShare: 0.25, Bytes: 3 * 4096}},
		Learned:    api.LearnedMemory{Problem: "learned: not usable: its checksum is wrong", Missed: 1, Wasted: -1},
	}
	if pages {
		m.Map = &api.PageMap{
			Data: api.PageRuns{{0, 128}}, Touched: api.PageRuns{{10, 4}, {200, 1}}, Prefetched: api.PageRuns{{10, 4}},
			Zero: api.PageRuns{{13, 1}}, Missed: api.PageRuns{{200, 1}},
		}
	}
	return m
}

func (n *Node) CreateSnapshot(_ context.Context, function string) (api.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made++
	s := api.Snapshot{ID: fmt.Sprint("s", n.made), Function: function, Usable: true, DiskBytes: 4096}
	n.SnapshotList = append(n.SnapshotList, s)
	return s, nil
}

func (n *Node) VerifySnapshot(_ context.Context, id string) error {
	if id == "bad" {
		return &api.Error{Status: http.StatusConflict, Message: "memory: digest differs", Hint: "remove it"}
	}
	return nil
}

func (n *Node) RemoveSnapshot(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.IndexFunc(n.SnapshotList, func(s api.Snapshot) bool { return s.ID == id }); i >= 0 {
		n.SnapshotList = slices.Delete(slices.Clone(n.SnapshotList), i, i+1)
		return nil
	}
	return fmt.Errorf("snapshot %q: %w", id, control.ErrNotFound)
}

func (n *Node) PushSnapshot(_ context.Context, id string) (api.PushedSnapshot, error) {
	if id == "bad" {
		return api.PushedSnapshot{}, fmt.Errorf("snapshot %q: %w", id, control.ErrNotFound)
	}
	return api.PushedSnapshot{ID: id, Function: "hello", Content: 100, New: 50, Written: 25, Took: api.Duration(time.Second)}, nil
}

func (n *Node) PullSnapshot(_ context.Context, function, id string) (api.Snapshot, error) {
	if id == "" {
		id = "newest"
	}
	return api.Snapshot{ID: id, Function: function}, nil
}

func (n *Node) RemoteSnapshots(_ context.Context, function string) ([]api.RemoteSnapshot, error) {
	return []api.RemoteSnapshot{{ID: "s1", Function: "hello", Stored: 25, Usable: true}, {ID: "s0", Function: function, Problem: "it does not match"}}, nil
}

func (n *Node) RemoveRemoteSnapshot(_ context.Context, function, id string) error {
	if id == "bad" {
		return fmt.Errorf("snapshot %s of %s: %w", id, function, control.ErrNotFound)
	}
	return nil
}

func (n *Node) CollectStore(_ context.Context, o api.CollectRequest) (api.Collected, error) {
	return api.Collected{Packs: 3, Bytes: 300, Deleted: o.Keep, Freed: int64(o.Grace.D() / time.Second)}, nil
}

func (n *Node) VerifyStore(_ context.Context, function string, quick bool) (api.StoreVerified, error) {
	v := api.StoreVerified{Snapshots: 2, Chunks: 7, Bytes: 70}
	if !quick {
		v.Problems = []api.StoreProblem{{Snapshot: function + "/s0", Error: "chunk 3: damaged"}}
	}
	return v, nil
}

func (n *Node) StoreUsage(context.Context, string) (api.StoreUsage, error) {
	return api.StoreUsage{Packs: 3, PackBytes: 300, Needed: 250, Snapshots: []api.SnapshotUsage{{ID: "s1", Function: "hello", Length: 1000, Content: 500, Stored: 250, Own: 100}}}, nil
}

func (n *Node) Images(context.Context) ([]api.Image, error) {
	return []api.Image{
		{Digest: "sha256:aaaa", DiskBytes: 1 << 20, Functions: []string{"echo"}, Snapshots: []string{"s1", "s2"}},
		{Digest: "sha256:bbbb", DiskBytes: 3 << 20},
	}, nil
}

func (n *Node) PruneImages(ctx context.Context) ([]api.Image, error) {
	all, err := n.Images(ctx)
	return slices.DeleteFunc(all, api.Image.InUse), err
}

func (n *Node) Invocations(_ context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	n.mu.Lock()
	n.Query = q
	n.mu.Unlock()
	if q.Function == "broken" {
		return nil, errors.New("disk I/O error")
	}
	return n.Records, nil
}

func (n *Node) Invocation(_ context.Context, id string) (api.Invocation, error) {
	for _, r := range n.Records {
		if r.ID == id {
			return r, nil
		}
	}
	return api.Invocation{}, fmt.Errorf("invocation %q: %w", id, control.ErrNotFound)
}

func (n *Node) Logs(ctx context.Context, q api.LogQuery, w io.Writer) error {
	for i := range 3 {
		if q.Tail > 0 && i < 3-q.Tail {
			continue
		}
		if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
			return err
		}
	}
	if q.Follow {
		<-ctx.Done()
		n.ended.Do(func() { close(n.Followed) })
		return ctx.Err()
	}
	return nil
}
