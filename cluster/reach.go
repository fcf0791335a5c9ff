package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Dial connects from the node's network, in which pods and services have their
// addresses.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	pid, err := c.PID()
	if err == nil && pid == 0 {
		err = errDown
	}
	if err != nil {
		return nil, err
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread stays in the node's network, and ends
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			done <- dialled{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- dialled{nil, fmt.Errorf("entering the node's network: %w", err)}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		done <- dialled{conn, err}
	}()
	d := <-done
	return d.conn, d.err
}

var errDown = errors.New("the cluster is not up: `make cluster`")

// ImportArchive gives the cluster the image of an archive, which has to be below its
// directory: the node does not see others.
func (c *Cluster) ImportArchive(ctx context.Context, path string) error {
	if out, err := c.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", path).CombinedOutput(); err != nil {
		return fmt.Errorf("importing an image: %w: %s", err, out)
	}
	return nil
}

// OnHost is where this host has a path of the node's /var.
func (c *Cluster) OnHost(path string) string { return c.path("node", path) }
