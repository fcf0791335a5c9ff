// Package shim is skep as a runtime of containerd: what the program
// containerd-shim-skep-v2 is made of. It stands beside the way of a cold
// invocation, as package node does: where that starts microVMs for functions,
// the shim starts one for a container.
//
// One shim process serves one container, or one pod:
//
//	containerd ──ttrpc── shim ── microVM of the function container
//	                      │
//	                      └─ttrpc── the same program again, which is runc's task
//	                                service: pause container and sidecars
//
// The two are processes of their own since each wants to wait for its own
// children only: runc's service reaps whatever ends, also what a VMM is traced
// by. They end together. Outside Kubernetes there is no second one.
//
// A shim needs no daemon. What it shares with others (root disks, snapshots,
// guest kernels) are files.
package shim

import (
	"context"
	"fmt"
	"io"
	"os"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/shim"
)

// Runtime is the runtime's name in containerd.
const Runtime = "io.containerd.skep.v2"

// roleEnv says to the program what it is, where containerd does not.
const roleEnv = "SKEP_SHIM_ROLE"

const roleRunc = "runc" // of the process that is runc's task service

// Main is the program. containerd calls it with an action as its last argument:
// start, which begins a shim and says where it listens, or delete, which clears
// away what a shim left that is gone. Without one it is the shim.
func Main(version string) {
	ctx := context.Background()
	m := host{version: version, runc: manager.NewShimManager(Runtime)}
	switch a := arguments(os.Args[1:]); {
	case os.Getenv(roleEnv) == roleRunc:
		serveRunc(ctx, m)
	case a.version:
		fmt.Println("containerd-shim-skep-v2", version)
	case a.action == "start":
		address, err := start(ctx, a)
		if err != nil {
			fmt.Fprintln(os.Stderr, "containerd-shim-skep-v2:", err)
			os.Exit(1)
		}
		// The bare address is what every containerd since 1.2 understands; it means
		// version 2 of the task API.
		fmt.Print(address)
	default:
		registerTasks(m)
		// What ends is waited for by who started it: see the package's comment.
		shim.RunShim(ctx, m, func(c *shim.Config) { c.NoReaper, c.NoSubreaper = true, true })
	}
}

// host is what containerd's library asks of a shim beside its tasks.
type host struct {
	version string
	runc    shim.Shim
}

var _ shim.Shim = host{}

func (h host) Name() string { return Runtime }

// Start is not called: Main does it in a way that older daemons understand, too.
func (h host) Start(context.Context, *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	return nil, fmt.Errorf("starting a shim: %w", os.ErrInvalid)
}

// Stop clears away a container whose shim is gone, and says how it ended. It is
// called in the container's bundle.
func (h host) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	sweepSockets()
	if bundle, err := os.Getwd(); err != nil {
		logLine("clearing away container %s: %v", id, err)
	} else if err := clear(ctx, bundle); err != nil {
		logLine("clearing away container %s: %v", id, err)
	}
	return h.runc.Stop(ctx, id)
}

// Info is what `ctr info` and the CRI show of the runtime: what runc can do, as
// everything but the function containers is its.
func (h host) Info(ctx context.Context, options io.Reader) (*types.RuntimeInfo, error) {
	info, err := h.runc.Info(ctx, options)
	if err != nil {
		return nil, err
	}
	info.Version = &types.RuntimeVersion{Version: h.version}
	return info, nil
}
