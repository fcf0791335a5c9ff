package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/shim/base"
	"github.com/skep-dev/skep/shim/ledger"
	"github.com/skep-dev/skep/snapshot"
)

// collectEvery is how often records of containers are taken over, and counted, evictEvery
// how often it is looked for snapshots that nobody uses: shims do so at their ends only.
const (
	collectEvery = 5 * time.Second
	evictEvery   = 10 * time.Minute
)

// metricsGrace is what a scrape under way gets when the program ends.
const metricsGrace = time.Second

// containerState is what there is on a node with containers that are microVMs, as
// metrics see functions: a revision is one.
type containerState struct{ snapshots *snapshot.Store }

var _ control.State = containerState{}

func (containerState) Functions() []api.Function { return nil }
func (containerState) Function(name string) (api.Function, bool) {
	return api.Function{Name: name}, true
}
func (containerState) Instances(string) []api.Instance { return nil }
func (containerState) Waiting() map[string]int         { return nil }
func (s containerState) Snapshots(context.Context, string) ([]api.Snapshot, error) {
	return s.snapshots.List("", nil)
}

// countContainers takes over the records of a node's containers and serves metrics of
// them at an address, until ctx ends.
func (c *cli) countContainers(ctx context.Context, h containerd.Host, listen string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	defer l.Close()
	cfg, err := h.Settings(nil)
	if err != nil {
		return err
	}
	dir := filepath.Join(h.Root, cfg.DataDir)
	records, err := ledger.Open(ctx, dir, cfg.KeepRecords)
	if err != nil {
		return err
	}
	defer records.Close()
	snapshots, err := snapshot.Open(filepath.Join(dir, "snapshots"))
	if err != nil {
		return err
	}
	m := control.NewMetrics(containerState{snapshots}, buildVersion(), nil)
	last, err := records.Last(ctx)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	serving, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- control.Serve(serving, l, mux, metricsGrace) }()
	var evicted time.Time
	for tick := time.NewTicker(collectEvery); ; {
		if now := time.Now(); now.Sub(evicted) > evictEvery {
			evicted = now
			if err := base.Evict(dir, cfg, slog.New(slog.NewTextHandler(c.err, nil))); err != nil {
				c.say("snapshots of containers: %v", err)
			}
		}
		seq, err := records.Follow(ctx, last, m.Observe)
		last = seq
		if err != nil && ctx.Err() == nil { // a disk that is full may not stay so
			c.say("records of containers: %v", err)
		}
		select {
		case <-tick.C:
		case err := <-served:
			tick.Stop()
			return err
		case <-ctx.Done():
			tick.Stop()
			if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		}
	}
}
