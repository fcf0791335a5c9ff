// Package control is the daemon's control API: HTTP and JSON over a unix
// socket, over TCP only with a token, and /metrics. It stands beside the way of
// an invocation: package node does the work, the CLI and scripts ask for it
// here through api.Client.
// What calls there are is in routes.go, and, for clients, in openapi.json, which
// GET /v1/openapi.json answers. Beside those there are
//
//	ANY    /v1/functions/{name}/invoke/{path}  to the function, as the gateway would
//	GET    /healthz                            200 unless the daemon has to be started anew; needs no token
//	GET    /readyz                             200 when it takes requests; needs no token
//	GET    /metrics                            Prometheus text
//
// The values of environments are not told: a function that is answered has
// api.Hidden in their place, but for GET /v1/functions/{name}?env=true.
//
// Bodies and queries are decoded strictly: an unknown field is an error that
// names it. Every answer that is not a success is an api.Error.
package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/results"
)

// Node is what the control API needs of package node.
type Node interface {
	// Deploy makes the function's image and, by its snapshot rule, its first
	// snapshot, and returns the function as it is stored. progress may be called
	// from several goroutines.
	Deploy(ctx context.Context, f api.Function, progress func(api.DeployEvent)) (api.Function, error)
	// Set changes what a JSON merge patch of the function names.
	Set(ctx context.Context, name string, patch []byte, progress func(api.DeployEvent)) (api.Function, error)
	// Rollback puts a kept revision into force again, 0 for the one before.
	Rollback(ctx context.Context, name string, revision int, progress func(api.DeployEvent)) (api.Function, error)
	Revisions(ctx context.Context, name string) ([]api.Revision, error)
	// Functions lists all functions by name; it must not touch the disk.
	Functions() []api.Function
	Function(name string) (api.Function, bool)
	// Remove drains the function's instances and deletes what belongs to it.
	Remove(ctx context.Context, name string) error
	// Instances lists the instances of a function, of all if function is empty.
	Instances(function string) []api.Instance
	// Snapshots lists published snapshots, newest first.
	Snapshots(ctx context.Context, function string) ([]api.Snapshot, error)
	// SnapshotManifest returns a value that marshals to the manifest.
	SnapshotManifest(ctx context.Context, id string) (any, error)
	// SnapshotMemory says what is known of a snapshot's memory, with pages page
	// by page.
	SnapshotMemory(ctx context.Context, id string, pages bool) (api.SnapshotMemory, error)
	CreateSnapshot(ctx context.Context, function string) (api.Snapshot, error)
	VerifySnapshot(ctx context.Context, id string) error
	RemoveSnapshot(ctx context.Context, id string) error
	Store
	Images(ctx context.Context) ([]api.Image, error)
	// PruneImages removes the images that neither a function nor a snapshot needs.
	PruneImages(ctx context.Context) ([]api.Image, error)
	Invocations(ctx context.Context, q api.InvocationQuery) ([]api.Invocation, error)
	Invocation(ctx context.Context, id string) (api.Invocation, error)
	// Visit connects to the agent of the instance of that id, or of the function's
	// that was used last.
	Visit(ctx context.Context, function, instance string) (Visit, error)
	// Healthy reports why only a new start would help, Ready why no requests
	// should come.
	Healthy(ctx context.Context) error
	Ready(ctx context.Context) error
	// Events reads what happens from now on, or after the event with that id. Unless
	// it goes on there without a gap, the first is an api.EventResync.
	Events(after string) Events
	// Usage reads what the host and the instances use.
	Usage() (api.Usage, error)
	// Logs writes a function's output to w; with Follow until ctx ends.
	Logs(ctx context.Context, q api.LogQuery, w io.Writer) error
}

// Events are what happens in a node. They are for one goroutine, and need no closing.
type Events interface {
	// Next returns the next event. It waits until ctx ends, and then returns its
	// cause; reading goes on where it was after that.
	Next(ctx context.Context) (api.Event, error)
}

// ErrNotFound is wrapped by a Node's errors about things that do not exist.
var ErrNotFound = errors.New("not found")

// Options of New. Node is needed; the rest may be zero.
type Options struct {
	Node    Node
	Invoke  http.Handler // serves /v1/functions/{name}/invoke/; nil: 404
	Metrics http.Handler // serves /metrics; nil: 404
	Version api.Version  // answered by /v1/version
	// URL returns where the gateway answers for a function; nil: not told.
	URL func(function string) string
	// Results is where experiments' results are, for /v1/experiments; "": none.
	Results results.Dir
	// Status maps an error of Node to an HTTP status and a hint; 0 leaves it to
	// the server. nil: always.
	Status func(error) (status int, hint string)
	// Closing, when closed, ends answers that never end by themselves (logs that
	// are followed), so that the daemon can.
	Closing <-chan struct{}
	// PageAddress is where the page is served (Page), host:port; "": nowhere.
	PageAddress string
	// Sessions are those of the page; nil: New makes them.
	Sessions *Sessions
	Log      *slog.Logger // nil: discarded
}

// Server answers the control API. Serve it with ServeUnix and ServeTCP, or use
// Handler in a server of one's own.
type Server struct {
	o        Options
	mux      *http.ServeMux
	log      *slog.Logger
	sessions *Sessions
}

// New returns a server; it listens nowhere yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, mux: http.NewServeMux(), log: o.Log, sessions: o.Sessions}
	if s.sessions == nil {
		s.sessions = NewSessions()
	}
	s.routes()
	return s
}

// Handler returns the API without authentication.
func (s *Server) Handler() http.Handler { return s.mux }
