// Package gateway is where requests come in: it finds the function that a
// request names, asks package node for an instance, and streams request and
// response between client and function. It is the first station of a cold
// invocation.
package gateway

import (
	"context"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/node"
)

// Backend is what the gateway needs of package node; *node.Node implements it.
type Backend interface {
	// Function returns a function by name. It is called for every request and
	// must not touch the disk.
	Function(name string) (api.Function, bool)
	// FunctionNames lists the names, sorted.
	FunctionNames() []string
	// Acquire lends an instance, waiting in the function's queue for one. Errors
	// wrap node.ErrNoFunction, node.ErrRemoved, node.ErrQueueFull, node.ErrDraining or
	// node.ErrNoneWarm, or are ctx's, or say why no instance could be started.
	Acquire(ctx context.Context, function string, o node.AcquireOptions) (node.Lease, error)
	// Record stores the record of an invocation that never got a lease.
	Record(rec api.Invocation)
	// Healthy says why the node cannot work any more, Ready why it takes no
	// requests; nil if it can, and does.
	Healthy(ctx context.Context) error
	Ready(ctx context.Context) error
}
