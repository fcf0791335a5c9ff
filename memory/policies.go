package memory

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skep-dev/skep/internal/suggest"
)

// Options of New. The zero value is right for a daemon.
type Options struct {
	// BufferBytes bounds the memory through which prefetching reads, over all
	// instances at once; default 512 MiB.
	BufferBytes int64
	// ReadLimit is how long a guest waits for a page before it is ended; default 30 s.
	ReadLimit time.Duration
	// Reads bounds the reads that wait for the disk at once, over all instances;
	// default 64. Each holds a thread.
	Reads int
	// SampleEvery is how seldom a restore holds back a part of its working set to
	// see whether it is touched: one in so many; default 16.
	SampleEvery int
	// Lone is for a process with a single guest: no buffer stays allocated that it
	// does not use.
	Lone bool
	// Frozen keeps working sets as they were recorded: nothing is learned.
	Frozen bool
}

// Policies is the table of policies and what they share: buffers, a bound on
// reads, what is known of memory files and working sets. One daemon has one.
type Policies struct {
	policies []Policy
	pool     *pool
	slots    chan struct{}
	holes    holeMaps
	sets     setCache
	spin     spinners
	turns    *semaphore.Weighted // of sessions that read their working set
	frozen   bool
	sampling uint32        // one restore in so many
	limit    time.Duration // of reading a page that a guest waits for

	mu        sync.Mutex
	reads     map[fileID]*sharedRead // guarded by mu: reads that may be joined, by file
	histories map[string]*history    // guarded by mu: by directory of the snapshot's trace
	recording map[string]*recorder   // guarded by mu: by directory of a snapshot that a session is recording; nil: one writes
}

// Default is the policy for whoever does not choose.
const Default = "stream"

// New makes the table. Close it after the last session.
func New(o Options) *Policies {
	if o.BufferBytes <= 0 {
		o.BufferBytes = 512 << 20
	}
	if o.ReadLimit <= 0 {
		o.ReadLimit = 30 * time.Second
	}
	if o.Reads <= 0 {
		o.Reads = 64
	}
	if o.SampleEvery <= 0 {
		o.SampleEvery = sampleEvery
	}
	t := &Policies{pool: newPool(o.BufferBytes), slots: make(chan struct{}, o.Reads), recording: make(map[string]*recorder), turns: semaphore.NewWeighted(streamTurns),
		frozen: o.Frozen, sampling: uint32(o.SampleEvery), limit: o.ReadLimit, reads: make(map[fileID]*sharedRead), histories: make(map[string]*history)}
	if o.Lone {
		t.pool.keep = 0
	}
	t.spin.max.Store(int32(max(runtime.GOMAXPROCS(0)/2, 1)))
	t.policies = []Policy{
		mmapPolicy{},
		residentPolicy{t},
		lazyPolicy{t},
		parallelPolicy{t},
		wsfilePolicy{t},
		reapPolicy{t},
		streamPolicy{t},
	}
	return t
}

// Lookup finds a policy by name; "" is Default.
func (t *Policies) Lookup(name string) (Policy, error) {
	if name == "" {
		name = Default
	}
	for _, p := range t.policies {
		if p.Name() == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no memory policy %q%s (there are %s)", name, suggest.Text(name, t.Names()), strings.Join(t.Names(), ", "))
}

// Names of all policies, sorted.
func (t *Policies) Names() []string {
	var names []string
	for _, p := range t.policies {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return names
}

// Close gives the shared buffers back. Every session must have been closed.
func (t *Policies) Close() error {
	t.pool.shut()
	return nil
}
