package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/gateway"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/node"
	objects "github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/snapshot"
)

// nodeView is the node as the control API and the metrics see it.
type nodeView struct {
	*node.Node
	metrics *control.Metrics
}

var (
	_ control.Node       = (*nodeView)(nil)
	_ control.State      = (*nodeView)(nil)
	_ control.StoreState = (*nodeView)(nil)
)

// backend is the node as the gateway sees it. It counts the requests that wait
// for an instance, to start or to become free.
type backend struct {
	*node.Node
	waiting atomic.Int64
}

var _ gateway.Backend = (*backend)(nil)

func (b *backend) Acquire(ctx context.Context, function string, o node.AcquireOptions) (node.Lease, error) {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	return b.Node.Acquire(ctx, function, o)
}

// Remove also drops the function's series.
func (v *nodeView) Remove(ctx context.Context, name string) error {
	if err := v.Node.Remove(ctx, name); err != nil {
		return err
	}
	v.metrics.Forget(name)
	return nil
}

func (v *nodeView) SnapshotManifest(_ context.Context, id string) (any, error) {
	return v.InspectSnapshot(id)
}

func (v *nodeView) SnapshotMemory(_ context.Context, id string, pages bool) (api.SnapshotMemory, error) {
	return v.Node.SnapshotMemory(id, pages)
}

func (v *nodeView) CreateSnapshot(ctx context.Context, function string) (api.Snapshot, error) {
	return v.Node.CreateSnapshot(ctx, function, nil)
}

func (v *nodeView) PushSnapshot(ctx context.Context, id string) (api.PushedSnapshot, error) {
	return v.Node.PushSnapshot(ctx, id, nil)
}

func (v *nodeView) PullSnapshot(ctx context.Context, function, id string) (api.Snapshot, error) {
	return v.Node.PullSnapshot(ctx, function, id, nil)
}

func (v *nodeView) Visit(ctx context.Context, function, instance string) (control.Visit, error) {
	visit, err := v.Node.Visit(ctx, function, instance)
	if err != nil {
		return nil, err
	}
	return visit, nil
}

func (v *nodeView) Events(after string) control.Events { return v.Node.Events(after) }

func (v *nodeView) RemoveSnapshot(_ context.Context, id string) error {
	return v.Node.RemoveSnapshot(id)
}

// Invocations turns the node's order around: people want the newest first.
func (v *nodeView) Invocations(ctx context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	recs, err := v.Node.Invocations(ctx, q)
	slices.Reverse(recs)
	return recs, err
}

func (v *nodeView) Invocation(ctx context.Context, id string) (api.Invocation, error) {
	recs, err := v.Node.Invocations(ctx, node.InvocationFilter{ID: id, Limit: 1})
	if err == nil && len(recs) == 0 {
		err = fmt.Errorf("invocation %q: %w among those that are kept", id, control.ErrNotFound)
	}
	if err != nil {
		return api.Invocation{}, err
	}
	return recs[0], nil
}

// statusOf says what the node's errors mean in HTTP, and what to do about them.
func statusOf(err error) (status int, hint string) {
	var start *node.StartError
	switch {
	case errors.Is(err, node.ErrNoFunction):
		return http.StatusNotFound, "`skep ls` lists the functions that exist"
	case errors.Is(err, snapshot.ErrNotFound):
		return http.StatusNotFound, "`skep snapshot ls` lists the snapshots that exist"
	case errors.Is(err, node.ErrNoStore):
		return http.StatusConflict, "set store_bucket, and store_endpoints unless it is one of AWS: docs/store.md"
	case errors.Is(err, objects.ErrNoKey):
		return http.StatusServiceUnavailable, "store_key_file or store_key_command says where it is from"
	case errors.Is(err, objects.ErrKey):
		return http.StatusUnprocessableEntity, "all nodes of a prefix want the same key: docs/store.md"
	case errors.Is(err, objects.ErrUnavailable):
		return http.StatusBadGateway, "is the store up, does it have the bucket, and may the daemon's credentials use it?"
	case errors.Is(err, objects.ErrNotThere):
		return http.StatusNotFound, "`skep snapshot ls --remote` lists what there is"
	case errors.Is(err, objects.ErrFormat):
		return http.StatusUnprocessableEntity, "`skep store verify` says what else is damaged"
	case errors.Is(err, node.ErrNoRevision):
		return http.StatusNotFound, "`skep revisions` lists those that are kept"
	case errors.Is(err, node.ErrNotRunning):
		return http.StatusConflict, "`skep ls --instances` lists those that run; a request starts one: `skep invoke NAME`"
	case errors.Is(err, node.ErrDraining):
		return http.StatusServiceUnavailable, "the daemon is ending: try again when it is back"
	case errors.Is(err, node.ErrDeploying):
		return http.StatusConflict, "try again when it is done"
	case errors.Is(err, node.ErrNoSnapshot):
		return http.StatusConflict, "`skep snapshot create` makes one"
	case errors.Is(err, node.ErrInvalid):
		return http.StatusBadRequest, ""
	case errors.As(err, &start):
		return http.StatusUnprocessableEntity, "what it wrote before may say why: see `skep logs` and the daemon's log"
	}
	return imageStatus(err)
}

// imageStatus says what is wrong with an image that was asked for. A registry
// that wants credentials is 403: 401 would be about the control API's own.
func imageStatus(err error) (status int, hint string) {
	switch {
	case errors.Is(err, image.ErrReference):
		return http.StatusBadRequest, "`skep help deploy` says how images are named"
	case errors.Is(err, image.ErrNoImage):
		return http.StatusNotFound, "look at the name, the tag and the registry"
	case errors.Is(err, image.ErrUnauthorized):
		return http.StatusForbidden, "it may be a private image or none at all: the daemon takes credentials from ~/.docker/config.json of its user, where `docker login` puts them"
	case errors.Is(err, image.ErrTooLarge):
		return http.StatusRequestEntityTooLarge, ""
	case errors.Is(err, image.ErrPlatform):
		return http.StatusUnprocessableEntity, "build it for this platform, or for several"
	case errors.Is(err, image.ErrMalformed):
		return http.StatusUnprocessableEntity, ""
	case errors.Is(err, image.ErrUnreachable):
		return http.StatusBadGateway, "is the registry up, and may the daemon reach it?"
	}
	return 0, ""
}
