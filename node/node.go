// Package node owns functions and instances: it deploys, starts microVMs from
// snapshots or by booting, keeps them warm, snapshots and ends them, records
// every invocation, and puts a host right again after a crash. It is the second
// station of a cold invocation and sequences the others: image, snapshot, network
// and microvm know nothing of each other.
// Package gateway borrows instances from it; the daemon's control API manages
// functions through it.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/snapshot"
)

// AcquireOptions change how one invocation gets its instance. The zero value is
// the ordinary way.
type AcquireOptions struct {
	// Start asks for an instance of that kind: StartRestore and StartBoot start a
	// new one for this invocation alone, StartWarm fails when none is idle.
	Start api.StartKind
	// Invocation is the id of its record, for the function's log. May be empty.
	Invocation string
	// Policy replaces the function's memory policy; it implies a restore.
	Policy string
}

// alone reports whether the invocation gets an instance of its own, which ends
// when it is given back.
func (o AcquireOptions) alone() bool {
	return o.Policy != "" || o.Start == api.StartBoot || o.Start == api.StartRestore
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
	// Ending is closed when the instance is to end once its requests are over:
	// they go on, but nothing should be waited for that is of no use.
	Ending() <-chan struct{}
	// Gone is closed when the instance has died under the lease; Err says why.
	Gone() <-chan struct{}
	Err() error
	// Release gives the instance back and stores the record; the node fills in
	// what it knows better (instance, snapshot, start, memory). Exactly once.
	Release(rec api.Invocation)
}

// QueueFullError is ErrQueueFull, of a function.
type QueueFullError struct {
	Function string
	Limit    int           // requests that may wait
	After    time.Duration // when there is likely to be room; 0: nobody knows
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%q: %v (queue_limit is %d)", e.Function, ErrQueueFull, e.Limit)
}

func (e *QueueFullError) Unwrap() error { return ErrQueueFull }

// Errors of Acquire that the gateway turns into statuses, and of management.
var (
	ErrNoFunction = errors.New("no such function")
	ErrInvalid    = errors.New("the function's settings cannot be met")
	// ErrRemoved is what requests get that wait while their function is removed:
	// it was there when they came.
	ErrRemoved   = errors.New("the function was removed while the request waited")
	ErrQueueFull = errors.New("too many requests are waiting")
	ErrDraining  = errors.New("shutting down")
	ErrNoneWarm  = errors.New("no warm instance is idle")
	ErrLocked    = errors.New("another daemon uses this data directory")
	// ErrConnect is wrapped when the function's server takes no connection: the
	// request was not sent, nor its body touched.
	ErrConnect = microvm.ErrConnect
	// ErrExited is wrapped by an instance's end that was its function's doing.
	ErrExited = microvm.ErrExited
	// ErrNotRunning is wrapped when nothing runs to enter.
	ErrNotRunning = errors.New("no instance is running")
	// ErrNoSnapshot is wrapped when a restore is asked for and nothing is there
	// to restore from.
	ErrNoSnapshot = errors.New("no usable snapshot")
)

// Node is one host's functions and instances. Its methods may be called from
// many goroutines.
type Node struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	starter microvm.Starter
	lock    *os.File
	db      *database
	images  image.Fetcher
	net     network.Pool
	snaps   *snapshot.Store
	kernel  Kernel
	cpu     snapshot.CPU
	logs    *logStore
	budget  *budget
	rec     *recorder
	events  *events
	shells  *shells
	alive   liveness
	pushNow chan struct{} // has the pusher look
	opened  time.Time     // the epoch of the scaling policies

	scaleGroup scale.Group // of those

	names keyedLock // serialises deploy, remove and snapshot of one name

	receiving keyedLock // one pull of a snapshot at a time
	arrivals  arrivals
	disks     disks

	deploying sync.RWMutex // held for reading by deploys, so that no image goes that one fetched

	// ctx ends when instances must be gone, drained or not; background work and
	// the instances themselves live in it.
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine of the node but the recorder's

	drain    chan struct{} // closed when draining begins
	drained  sync.Once
	closing  sync.Once
	closeErr error

	mu       sync.RWMutex // guards what follows; not taken under a pool's but by spawn
	pools    map[string]*pool
	draining bool
}

// spawn runs f in a goroutine that Close waits for; it reports false, and does
// not run it, once the node drains.
func (n *Node) spawn(f func()) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.draining {
		return false
	}
	n.wg.Go(f)
	return true
}

func (n *Node) pool(name string) *pool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.pools[name]
}

func (n *Node) allPools() []*pool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	all := make([]*pool, 0, len(n.pools))
	for _, p := range n.pools {
		all = append(all, p)
	}
	return all
}
