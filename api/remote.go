package api

import (
	"context"
	"net/url"
	"strconv"
	"time"
)

// RemoteSnapshot is one in the object store.
type RemoteSnapshot struct {
	ID        string    `json:"id"`
	Function  string    `json:"function"`
	Created   time.Time `json:"created,omitzero"`
	Pushed    time.Time `json:"pushed"`
	Reason    string    `json:"reason,omitempty"`
	VMM       string    `json:"vmm,omitempty"`
	MemoryMiB int       `json:"memory_mib,omitempty"`
	Stored    int64     `json:"stored_bytes"` // of its chunks
	Here      bool      `json:"here"`         // this node has it
	// Arriving says how far its memory is that instances start from here already.
	Arriving *Arriving `json:"arriving,omitempty"`
	// Usable says whether a start here could use it; Problem why not.
	Usable  bool   `json:"usable"`
	Problem string `json:"problem,omitempty"`
}

// Arriving says how far something is that is being fetched, in bytes of content.
type Arriving struct {
	Done  int64 `json:"done_bytes"`
	Total int64 `json:"total_bytes"`
}

// StoreStats counts what a daemon has had of the object store since it was started.
type StoreStats struct {
	Fetched     int64 // bytes
	Requests    int64
	Failed      int64         // requests that got no proper answer, after all retries
	Waits       int64         // times that guests waited for a part of their memory,
	Waited      time.Duration // in all
	CacheHits   int64         // chunks that the cache on disk had,
	CacheMisses int64         // and had not
	CacheBytes  int64         // that it has now
	Arriving    int           // snapshots on their way now
}

// PushedSnapshot says what a push has done, in bytes.
type PushedSnapshot struct {
	ID       string   `json:"id"`
	Function string   `json:"function"`
	Content  int64    `json:"content_bytes"` // of its files, but for zeros
	New      int64    `json:"new_bytes"`     // of them that the store did not have
	Written  int64    `json:"written_bytes"` // for them
	Took     Duration `json:"took"`
}

// PullRequest asks for a snapshot of the object store.
type PullRequest struct {
	Function string `json:"function"`
	ID       string `json:"id,omitempty"` // default: the newest that fits
}

// CollectRequest says what is to go from the object store.
type CollectRequest struct {
	DryRun bool     `json:"dry_run,omitempty"`
	Grace  Duration `json:"grace,omitempty"` // that packs stay condemned before they are deleted
	Keep   int      `json:"keep,omitempty"`  // newest snapshots of each function that fit the same; 0: all
}

// Collected says what was collected, or would be.
type Collected struct {
	Removed   []string `json:"removed"` // FUNCTION/ID
	Pushes    int      `json:"pushes"`  // under way
	Dead      int      `json:"dead"`    // pushes written off
	Packs     int      `json:"packs"`   // before
	Bytes     int64    `json:"bytes"`   // of them
	Condemned int      `json:"condemned"`
	Waiting   int      `json:"waiting"`
	Deleted   int      `json:"deleted"`
	Freed     int64    `json:"freed_bytes"`
}

// StoreVerified says what of the object store was checked.
type StoreVerified struct {
	Snapshots int            `json:"snapshots"`
	Chunks    int            `json:"chunks"`
	Bytes     int64          `json:"bytes"`
	Problems  []StoreProblem `json:"problems"`
}

// StoreProblem is what is wrong with a snapshot in the object store.
type StoreProblem struct {
	Snapshot string `json:"snapshot"` // FUNCTION/ID
	Error    string `json:"error"`
}

// StoreUsage is what the object store holds, in bytes.
type StoreUsage struct {
	Snapshots []SnapshotUsage `json:"snapshots"`
	Packs     int             `json:"packs"`
	PackBytes int64           `json:"pack_bytes"`
	Needed    int64           `json:"needed_bytes"` // chunks of all snapshots, each once
	Condemned int             `json:"condemned"`    // packs
	Pushes    int             `json:"pushes"`       // under way
}

// SnapshotUsage is what one snapshot takes in the object store, in bytes.
type SnapshotUsage struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Length   int64  `json:"length"`  // of its files, holes included
	Content  int64  `json:"content"` // of them, but for zeros
	Stored   int64  `json:"stored"`  // of its chunks
	Own      int64  `json:"own"`     // of chunks that no other snapshot has
}

// PushSnapshot stores a snapshot in the object store.
func (c *Client) PushSnapshot(ctx context.Context, id string) (p PushedSnapshot, err error) {
	return p, c.call(ctx, "POST", "/v1/snapshots/"+url.PathEscape(id)+"/push", nil, &p)
}

// PullSnapshot brings a snapshot of the object store to the daemon's.
func (c *Client) PullSnapshot(ctx context.Context, r PullRequest) (s Snapshot, err error) {
	return s, c.call(ctx, "POST", "/v1/store/pull", r, &s)
}

// RemoteSnapshots lists what is in the object store, newest first.
func (c *Client) RemoteSnapshots(ctx context.Context, function string) (ss []RemoteSnapshot, err error) {
	return ss, c.call(ctx, "GET", "/v1/store/snapshots"+query("function", function), nil, &ss)
}

// RemoveRemoteSnapshot takes a snapshot out of the object store.
func (c *Client) RemoveRemoteSnapshot(ctx context.Context, function, id string) error {
	return c.call(ctx, "DELETE", "/v1/store/snapshots/"+url.PathEscape(function)+"/"+url.PathEscape(id), nil, nil)
}

// CollectStore deletes what nobody needs from the object store.
func (c *Client) CollectStore(ctx context.Context, r CollectRequest) (o Collected, err error) {
	return o, c.call(ctx, "POST", "/v1/store/gc", r, &o)
}

// VerifyStore checks the snapshots in the object store; quick: without reading their content.
func (c *Client) VerifyStore(ctx context.Context, function string, quick bool) (v StoreVerified, err error) {
	q := url.Values{"quick": {strconv.FormatBool(quick)}}
	if function != "" {
		q.Set("function", function)
	}
	return v, c.call(ctx, "POST", "/v1/store/verify?"+q.Encode(), nil, &v)
}

// StoreUsage says what the object store holds.
func (c *Client) StoreUsage(ctx context.Context, function string) (u StoreUsage, err error) {
	return u, c.call(ctx, "GET", "/v1/store/usage"+query("function", function), nil, &u)
}
