package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/experiment/results"
	"github.com/skep-dev/skep/gateway"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/tracing/export"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/node"
	objects "github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/dial"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/choose"
)

// controlGrace is what control requests under way get when the daemon ends;
// node has ended what they wait for by then.
const controlGrace = 2 * time.Second

// daemon is a node with its gateway and control API, listening.
type daemon struct {
	cfg     config.Config
	log     *slog.Logger
	version api.Version
	policy  *memory.Policies
	vmm     vmm.VMM
	program string // path of the VMM's
	node    *node.Node
	view    *nodeView
	images  *image.Store
	bucket  *bucket.Bucket // nil: no object store
	remote  *objects.Store
	gateway *gateway.Gateway
	spans   *export.Provider
	metrics *control.Metrics

	functions net.Listener  // the gateway's
	servers   []server      // control API and metrics
	closing   chan struct{} // closed when the daemon begins to end
}

// server is a handler on a listener.
type server struct {
	l net.Listener
	h http.Handler
}

// openDaemon starts everything and listens; serve answers.
func openDaemon(ctx context.Context, r config.Result, log *slog.Logger) (_ *daemon, err error) {
	if err := asRoot("the daemon"); err != nil {
		return nil, err
	}
	d := &daemon{cfg: r.Config, log: log, closing: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for _, dir := range []string{d.cfg.DataDir, d.cfg.RunDir, filepath.Dir(d.cfg.Socket)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the daemon's directories: %w", err)
		}
	}
	if err := d.openNode(ctx); err != nil {
		return nil, err
	}
	return d, d.listen(ctx)
}

// openNode opens the node, which refuses a data directory that is in use.
func (d *daemon) openNode(ctx context.Context) error {
	d.policy = memory.New(memory.Options{Frozen: !d.cfg.Learning, SampleEvery: d.cfg.SampleEvery})
	if _, err := d.policy.Lookup(d.cfg.MemoryPolicy); err != nil {
		return &usageError{msg: err.Error()}
	}
	if err := d.openStore(ctx); err != nil {
		return err
	}
	var err error
	if d.vmm, err = choose.VMM(ctx, d.cfg, d.log); err != nil {
		return err
	}
	info, err := d.vmm.Info(ctx)
	if err != nil {
		return err
	}
	d.program = info.Path
	d.version = buildVersion()
	d.version.VMM = vmmName(info)
	// The view exists before its node, whose hook for records needs it; there is
	// no record before the first request.
	d.view = &nodeView{}
	b := &backend{}
	d.metrics = control.NewMetrics(d.view, d.version, func() int { return int(b.waiting.Load()) })
	d.view.metrics = d.metrics
	if d.node, err = node.Open(ctx, nodeConfig(d.cfg), d.deps()); err != nil {
		if errors.Is(err, node.ErrLocked) {
			return fmt.Errorf("%w; choose another with --data-dir, or end that daemon", err)
		}
		return err
	}
	d.view.Node, b.Node = d.node, d.node
	if d.spans, err = export.Open(ctx, export.Options{Endpoint: d.cfg.OTLPEndpoint, Service: "skep", Version: d.version.Version, Log: d.log}); err != nil {
		return err
	}
	trusted, err := d.cfg.TrustedProxies()
	if err != nil {
		return err
	}
	d.gateway = gateway.New(b, gateway.Options{
		Domain: d.cfg.Domain, Experiments: d.cfg.Experiments, TrustForwarded: trusted, ListFunctions: d.cfg.ListsFunctions(),
		MaxBody: int64(d.cfg.MaxBody) << 20, MaxConns: d.cfg.MaxConnections, AccessLog: d.cfg.AccessLog,
		DrainTimeout: controlGrace, Log: d.log, Traces: d.spans.Requests(),
	})
	return nil
}

// openStore opens the object store of snapshots, if one is configured. Whether it answers is seen when
// it is needed: a daemon starts, and serves, without.
func (d *daemon) openStore(ctx context.Context) (err error) {
	c := d.cfg
	if c.StoreBucket == "" {
		return nil
	}
	var cache *objects.Cache
	if c.StoreCacheMiB > 0 {
		if cache, err = objects.OpenCache(filepath.Join(c.DataDir, "chunks"), int64(c.StoreCacheMiB)<<20); err != nil {
			return err
		}
	}
	d.remote, d.bucket, err = dial.Store(ctx, c, cache, d.log)
	return err
}

// listen opens every address, and only then is anything answered.
func (d *daemon) listen(ctx context.Context) error {
	var err error
	if d.functions, err = net.Listen("tcp", d.cfg.Listen); err != nil {
		return fmt.Errorf("listening for functions: %w; another address can be set with --listen", err)
	}
	// The page's address is told before it is listened at.
	sessions := control.NewSessions()
	api := d.control(sessions).Handler()
	unix, err := control.ListenUnix(ctx, d.cfg.Socket)
	if err != nil {
		return err
	}
	d.servers = append(d.servers, server{unix, api})
	if d.cfg.ControlListen != "" {
		token, err := control.ReadToken(d.cfg.ControlTokenFile)
		if err != nil {
			return err
		}
		guarded, err := control.RequireToken(token, sessions, api)
		if err != nil {
			return err
		}
		if err := d.listenTCP(d.cfg.ControlListen, control.Page(sessions, guarded)); err != nil {
			return err
		}
	}
	if d.cfg.MetricsListen != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", d.metrics.Handler())
		mux.Handle("/", control.Health(d.view))
		return d.listenTCP(d.cfg.MetricsListen, mux)
	}
	return nil
}

func (d *daemon) listenTCP(addr string, h http.Handler) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	d.servers = append(d.servers, server{l, h})
	return nil
}

func (d *daemon) control(sessions *control.Sessions) *control.Server {
	v := d.version
	v.Gateway, v.Domain, v.PID, v.Started, v.Policies = d.gatewayAddr(), d.cfg.Domain, os.Getpid(), time.Now().UTC(), d.policy.Names()
	return control.New(control.Options{
		Node:    d.view,
		Invoke:  d.checkPolicy(d.gateway.Control()),
		Metrics: d.metrics.Handler(),
		Version: v,
		URL:     func(f string) string { return functionURL(d.cfg, d.gatewayAddr(), f) },
		Status:  statusOf,
		Closing: d.closing, PageAddress: pageAddress(d.cfg.ControlListen), Sessions: sessions,
		Results: resultsDir(d.cfg), Log: d.log,
	})
}

// resultsDir is where the page looks for experiments' results.
func resultsDir(c config.Config) results.Dir {
	return results.Dir(cmp.Or(c.ResultsDir, filepath.Join(c.DataDir, "experiments")))
}

// pageAddress is where a browser on this host finds what listens there.
func pageAddress(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "" // none
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// checkPolicy refuses an invocation under a memory policy that does not exist
// before an instance is started for it.
func (d *daemon) checkPolicy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := r.Header.Get(api.HeaderPolicy); name != "" {
			if _, err := d.policy.Lookup(name); err != nil {
				control.WriteError(w, &api.Error{Status: http.StatusBadRequest, Message: err.Error()})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func (d *daemon) gatewayAddr() string { return d.functions.Addr().String() }

// serve answers until ctx ends, then drains: the node refuses new requests and
// answers those under way, then the listeners go, then all else. Those refused
// meanwhile leave records too.
func (d *daemon) serve(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	failed := make(chan struct{}, len(d.servers)+1)
	g.Go(func() error {
		defer func() { failed <- struct{}{} }()
		return d.gateway.Serve(running, d.functions)
	})
	for _, s := range d.servers {
		g.Go(func() error {
			defer func() { failed <- struct{}{} }()
			return control.Serve(running, s.l, s.h, controlGrace)
		})
	}
	d.log.Info("ready", "gateway", d.gatewayAddr(), "socket", d.cfg.Socket, "functions", len(d.node.Functions()))
	select {
	case <-ctx.Done():
		d.log.Info("draining", "timeout", d.cfg.DrainTimeout.String())
	case <-failed:
	}
	close(d.closing)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.DrainTimeout.D())
	d.node.Drain(drain)
	cancel()
	stop()
	err := errors.Join(g.Wait(), d.close())
	d.log.Info("ended")
	return err
}

// close releases what was opened, in reverse. It is idempotent.
func (d *daemon) close() error {
	var errs []error
	listeners := []net.Listener{d.functions}
	for _, s := range d.servers {
		listeners = append(listeners, s.l)
	}
	for _, l := range listeners {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if d.node != nil {
		ctx, cancel := context.WithTimeout(context.Background(), d.cfg.DrainTimeout.D())
		defer cancel()
		errs = append(errs, d.node.Close(ctx))
	}
	if d.images != nil {
		errs = append(errs, d.images.Close()) // the node has ended every fetch
	}
	if d.policy != nil {
		errs = append(errs, d.policy.Close())
	}
	if d.bucket != nil {
		d.bucket.Close()
	}
	d.spans.Close()
	return errors.Join(errs...)
}
