// Package node owns functions and instances: it deploys, starts microVMs from
// snapshots or by booting, keeps them warm, snapshots and ends them, records
// every invocation, and puts a host right again after a crash. It is the second
// station of a cold invocation and the only package that sequences the others:
// image, snapshot, network, memory, vmm and guest know nothing of each other.
package node

import (
	"errors"
	"net/http"

	"github.com/skep-dev/skep/api"
)

// AcquireOptions change how one invocation gets its instance. The zero value is
// the ordinary way.
type AcquireOptions struct {
	// Start asks for an instance of that kind: StartRestore and StartBoot start a
	// new one for this invocation alone, StartWarm fails when none is idle.
	Start api.StartKind
	// Policy replaces the function's memory policy; it implies a restore.
	Policy string
}

// Lease is an instance lent to one invocation. *Node lends them; package
// gateway uses them.
type Lease interface {
	Instance() string
	Start() api.StartKind
	// Phases are the invocation's so far, from Queue to Clone or Init.
	Phases() api.Phases
	// Transport sends requests to the function's server over connections that
	// belong to the instance; h2 selects HTTP/2 with prior knowledge (gRPC).
	Transport(h2 bool) http.RoundTripper
	// Gone is closed when the instance has died under the lease; Err says why.
	Gone() <-chan struct{}
	Err() error
	// Release gives the instance back and stores the record; the node fills in
	// what it knows better (instance, snapshot, start, memory). Exactly once.
	Release(rec api.Invocation)
}

// Errors of Acquire that the gateway turns into statuses.
var (
	ErrNoFunction = errors.New("no such function")
	ErrQueueFull  = errors.New("too many requests are waiting")
	ErrDraining   = errors.New("shutting down")
	ErrNoneWarm   = errors.New("no warm instance is idle")
)
