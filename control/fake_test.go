package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// fakeNode keeps functions in memory.
type fakeNode struct {
	mu        sync.Mutex
	functions map[string]api.Function
	snapshots []api.Snapshot
	records   []api.Invocation
	followed  chan struct{} // closed when a follow has ended
	deployErr error
	bytes     int // progress events to send
}

var _ Node = (*fakeNode)(nil)

func newFake() *fakeNode {
	return &fakeNode{functions: map[string]api.Function{}, followed: make(chan struct{})}
}

func (n *fakeNode) Deploy(_ context.Context, f api.Function, progress func(api.DeployEvent)) (api.Function, error) {
	progress(api.DeployEvent{Stage: api.StagePulling, Total: int64(n.bytes)})
	for i := range n.bytes {
		progress(api.DeployEvent{Stage: api.StagePulling, Done: int64(i), Total: int64(n.bytes)})
	}
	progress(api.DeployEvent{Stage: api.StageDone, Took: time.Second})
	if n.deployErr != nil {
		return api.Function{}, n.deployErr
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	f = f.WithDefaults()
	f.ImageDigest = "sha256:1234"
	n.functions[f.Name] = f
	return f, nil
}

func (n *fakeNode) Functions() []api.Function {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []api.Function
	for _, f := range n.functions {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b api.Function) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (n *fakeNode) Function(name string) (api.Function, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, ok := n.functions[name]
	return f, ok
}

func (n *fakeNode) Remove(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.functions, name)
	return nil
}

func (n *fakeNode) Instances(function string) []api.Instance {
	if function == "none" {
		return nil
	}
	return []api.Instance{{ID: "i1", Function: "hello", State: api.InstanceIdle}, {ID: "i2", Function: "hello", State: api.InstanceBusy}}
}

func (n *fakeNode) Snapshots(string) []api.Snapshot { return n.snapshots }

func (n *fakeNode) SnapshotManifest(_ context.Context, id string) (any, error) {
	for _, s := range n.snapshots {
		if s.ID == id {
			return map[string]string{"id": id}, nil
		}
	}
	return nil, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
}

func (n *fakeNode) CreateSnapshot(_ context.Context, function string) (api.Snapshot, error) {
	s := api.Snapshot{ID: "s1", Function: function, Usable: true, DiskBytes: 4096}
	n.snapshots = append(n.snapshots, s)
	return s, nil
}

func (n *fakeNode) VerifySnapshot(_ context.Context, id string) error {
	if id == "bad" {
		return &api.Error{Status: http.StatusConflict, Message: "memory: digest differs", Hint: "remove it"}
	}
	return nil
}

func (n *fakeNode) RemoveSnapshot(_ context.Context, id string) error {
	return fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
}

func (n *fakeNode) Invocations(_ context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	if q.Function == "broken" {
		return nil, errors.New("disk I/O error")
	}
	return n.records, nil
}

func (n *fakeNode) Invocation(_ context.Context, id string) (api.Invocation, error) {
	for _, r := range n.records {
		if r.ID == id {
			return r, nil
		}
	}
	return api.Invocation{}, fmt.Errorf("invocation %q: %w", id, ErrNotFound)
}

func (n *fakeNode) Logs(ctx context.Context, q api.LogQuery, w io.Writer) error {
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
		close(n.followed)
		return ctx.Err()
	}
	return nil
}

// serve runs h on a unix socket until the test ends and returns its path.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, h)
	return path
}

func run(t testing.TB, l net.Listener, h http.Handler) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
}

func clientOf(t testing.TB, o Options) (*api.Client, string) {
	t.Helper()
	path := serve(t, New(o).Handler())
	c := api.NewClient(api.ClientOptions{Socket: path})
	t.Cleanup(c.Close)
	return c, path
}
