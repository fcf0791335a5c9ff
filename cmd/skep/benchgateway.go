package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/gateway"
	"github.com/skep-dev/skep/node"
)

// gatewayBench are the flags of bench gateway.
type gatewayBench struct {
	calls, clients int
	duration       time.Duration
	out            string
}

func (c *cli) benchGatewayCmd() *cobra.Command {
	var o gatewayBench
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "measure the gateway alone, before a plain HTTP server",
		Long: `Measure what the gateway adds to a warm call, and how many it passes on: client,
gateway and a plain HTTP server run in this process, so no machine and no root
are needed. Direct calls and calls through the gateway take turns.

Run it under taskset to give all three a number of cores.`,
		Example: `  taskset -c 0,1 skep bench gateway
  skep bench gateway --calls 10000 --out samples.json`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.benchGateway(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.IntVar(&o.calls, "calls", 5000, "calls of each kind, one at a time")
	f.IntVar(&o.clients, "clients", 32, "clients at once, for the throughput")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "how long they send")
	f.StringVar(&o.out, "out", "", "write raw samples as JSON to `FILE`")
	return cmd
}

// gatewayResult is what bench gateway measured.
type gatewayResult struct {
	CPUs       int     `json:"cpus"`
	DirectUS   float64 `json:"direct_median_us"`
	ThroughUS  float64 `json:"through_median_us"`
	AddedUS    float64 `json:"added_median_us"`
	Clients    int     `json:"clients"`
	DirectRPS  float64 `json:"direct_rps"`
	ThroughRPS float64 `json:"through_rps"`
	// Samples of single calls, microseconds.
	Direct  []float64 `json:"direct_us,omitempty"`
	Through []float64 `json:"through_us,omitempty"`
}

func (c *cli) benchGateway(ctx context.Context, o gatewayBench) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plain := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "Hello, world!\n") })
	direct, err := serveLocal(ctx, func(l net.Listener) error { return http.Serve(l, plain) })
	if err != nil {
		return err
	}
	through, err := serveLocal(ctx, func(l net.Listener) error {
		return gateway.New(newPlainNode(direct), gateway.Options{}).Serve(ctx, l)
	})
	if err != nil {
		return err
	}
	urls := [2]string{"http://" + direct + "/", "http://" + through + "/function/plain/"}
	r := gatewayResult{CPUs: runtime.NumCPU(), Clients: o.clients}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: o.clients}}
	defer client.CloseIdleConnections()
	for range o.calls {
		for i, samples := range []*[]float64{&r.Direct, &r.Through} {
			began := time.Now()
			if err := call(ctx, client, urls[i]); err != nil {
				return err
			}
			*samples = append(*samples, float64(time.Since(began).Nanoseconds())/1000)
		}
	}
	r.DirectUS, r.ThroughUS = middle(r.Direct), middle(r.Through)
	r.AddedUS = r.ThroughUS - r.DirectUS
	for i, rps := range []*float64{&r.DirectRPS, &r.ThroughRPS} {
		if *rps, err = throughput(ctx, client, urls[i], o.clients, o.duration); err != nil {
			return err
		}
	}
	return c.showGateway(r, o)
}

func (c *cli) showGateway(r gatewayResult, o gatewayBench) error {
	if o.out != "" {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	r.Direct, r.Through = nil, nil
	if c.json {
		return c.writeJSON(r)
	}
	_, err := fmt.Fprintf(c.out, `one call, median of %d:   direct %.0f µs, through the gateway %.0f µs: %.0f µs added
%d clients at once:       direct %.0f requests/s, through the gateway %.0f
client, gateway and server share %d CPUs
`, o.calls, r.DirectUS, r.ThroughUS, r.AddedUS, r.Clients, r.DirectRPS, r.ThroughRPS, r.CPUs)
	return err
}

// serveLocal serves on a port of this host until ctx ends.
func serveLocal(ctx context.Context, serve func(net.Listener) error) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go serve(l)
	context.AfterFunc(ctx, func() { l.Close() })
	return l.Addr().String(), nil
}

func call(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

func throughput(ctx context.Context, client *http.Client, url string, clients int, d time.Duration) (float64, error) {
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, clients)
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			for time.Since(began) < d && errs[i] == nil {
				errs[i] = call(ctx, client, url)
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

func middle(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

// plainNode is a node whose only function is a plain server.
type plainNode struct {
	fn        api.Function
	transport *http.Transport
}

func newPlainNode(addr string) *plainNode {
	return &plainNode{
		fn: api.Function{Name: "plain", Image: "none"}.WithDefaults(),
		transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1024,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", addr)
			}},
	}
}

func (n *plainNode) Function(name string) (api.Function, bool) { return n.fn, name == n.fn.Name }
func (n *plainNode) FunctionNames() []string                   { return []string{n.fn.Name} }
func (n *plainNode) Record(api.Invocation)                     {}
func (n *plainNode) Healthy(context.Context) error             { return nil }
func (n *plainNode) Ready(context.Context) error               { return nil }
func (n *plainNode) Acquire(context.Context, string, node.AcquireOptions) (node.Lease, error) {
	return plainLease{n}, nil
}

type plainLease struct{ n *plainNode }

func (plainLease) Instance() string                   { return "plain" }
func (plainLease) Start() api.StartKind               { return api.StartWarm }
func (plainLease) Phases() api.Phases                 { return api.Phases{} }
func (plainLease) Ending() <-chan struct{}            { return nil }
func (plainLease) Gone() <-chan struct{}              { return nil }
func (plainLease) Err() error                         { return nil }
func (plainLease) Release(api.Invocation)             {}
func (l plainLease) Transport(bool) http.RoundTripper { return l.n.transport }
