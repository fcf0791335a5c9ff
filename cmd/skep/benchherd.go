package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// herdFlags are what the flags of bench herd were set to.
type herdFlags struct {
	benchFlags
	requests, max int
}

// herdSample is one request of a herd: a line of the benchmark's raw data.
type herdSample struct {
	Run          int            `json:"run"`
	MaxInstances int            `json:"max_instances"`
	Latency      time.Duration  `json:"latency_ns"` // as the client saw it
	Started      int            `json:"started"`    // microVMs that this herd had started, beside the warm one
	Record       api.Invocation `json:"record"`
}

func (c *cli) benchHerdCmd() *cobra.Command {
	var o herdFlags
	cmd := &cobra.Command{
		Use:   "herd",
		Short: "measure parallel short requests at one warm instance",
		Long: `Measure a herd: parallel short requests that meet one warm instance, once with
max_instances 1 and once with more, in turns, on a private daemon. With 1 they
queue; with more the scaling policy decides whether microVMs are started for
them. It decides well where the second is no slower than the first.

Medians and the count of microVMs started go to stdout; --out keeps raw samples
as JSON lines, the first of which describes the machine.`,
		Example: `  skep bench herd -n 5 --out herd.jsonl
  skep bench herd --path '/sleep?ms=2000'      # long enough for starts to be worth it`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.runs < 1 || o.requests < 1 || o.max < 1 {
				return usagef(cmd, "-n is %d, --requests %d, --max %d: want 1 or more of each", o.runs, o.requests, o.max)
			}
			return c.benchHerd(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.function, "function", "hello", "which of the functions that come with skep")
	f.StringVar(&o.path, "path", "/sleep?ms=20", "path that is requested")
	f.IntVarP(&o.runs, "runs", "n", 5, "herds of each setting")
	f.IntVar(&o.requests, "requests", 8, "requests at once in a herd")
	f.IntVar(&o.max, "max", 8, "max_instances that is compared with 1")
	f.StringVarP(&o.out, "out", "o", "", "`FILE` for raw samples, as JSON lines")
	c.keyFlags(f, "vmm", "accel", "qemu", "firecracker", "kernel", "kernel_modules", "kernel_dir", "data_dir", "log_level")
	return cmd
}

// herdKeepAlive is longer than a herd takes, so that who was started for it is
// still there to be counted.
const herdKeepAlive = 5 * time.Second

func (c *cli) benchHerd(ctx context.Context, o herdFlags) (err error) {
	p, err := c.startPrivate(ctx, "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	raw, closeRaw, err := o.openOut()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRaw()) }()
	host := describeMachine(p.version, p.d.cfg.DataDir)
	if err := raw.Encode(map[string]any{"machine": host, "function": o.function, "path": o.path, "requests": o.requests}); err != nil {
		return err
	}
	m, remove, err := c.deployPrivate(ctx, p, o.function, api.Function{
		Name: "bench", VCPUs: 1, MemoryMiB: 128, KeepAlive: api.Duration(herdKeepAlive),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	m.path = o.path
	var samples []herdSample
	for run := range o.runs {
		c.say("run %d of %d", run+1, o.runs)
		for _, most := range []int{1, o.max} {
			herd, err := m.herd(ctx, run, o.requests, most)
			if err != nil {
				return err
			}
			for _, s := range herd {
				if err := raw.Encode(s); err != nil {
					return err
				}
			}
			samples = append(samples, herd...)
		}
	}
	if c.json {
		return c.writeJSON(map[string]any{"machine": host, "samples": samples})
	}
	fmt.Fprintf(c.out, "%s%s · %d at once · %s · %d CPUs · Linux %s\n\n", o.function, o.path, o.requests, host.VMM, host.CPUs, host.Kernel)
	return table(c.out, herdTable(samples, o.max))
}

// herd lets the requests loose at one warm instance of a function that may have
// so many.
func (m *measurement) herd(ctx context.Context, run, requests, most int) ([]herdSample, error) {
	if _, err := m.client.Set(ctx, m.function, map[string]any{"max_instances": most}, nil); err != nil {
		return nil, err
	}
	if err := m.quiet(ctx); err != nil {
		return nil, err
	}
	for range 4 { // one starts the instance, the others show how long requests take
		if _, err := m.invoke(ctx, variant{}); err != nil {
			return nil, err
		}
	}
	samples, errs := make([]herdSample, requests), make([]error, requests)
	var wg sync.WaitGroup
	for i := range samples {
		wg.Go(func() {
			began := time.Now()
			s := herdSample{Run: run, MaxInstances: most}
			s.Record, s.Latency, errs[i] = m.timed(ctx, began)
			samples[i] = s
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	there, err := m.client.Instances(ctx, m.function)
	for i := range samples {
		samples[i].Started = len(there) - 1
	}
	return samples, err
}

// timed is invoke with what the client waited for the answer.
func (m *measurement) timed(ctx context.Context, began time.Time) (api.Invocation, time.Duration, error) {
	resp, err := m.client.Invoke(ctx, api.InvokeRequest{Function: m.function, Path: m.path})
	if err != nil {
		return api.Invocation{}, 0, err
	}
	took := time.Since(began)
	rec, err := m.answer(ctx, resp, variant{})
	return rec, took, err
}

// herdTable has a row for each setting, and the ratio of their medians.
func herdTable(samples []herdSample, most int) [][]string {
	rows := [][]string{{"MAX INSTANCES", "HERDS", "STARTED", "P50 ms", "P90 ms", "MAX ms"}}
	var medians []time.Duration
	for i, setting := range []int{1, most} {
		if i > 0 && most == 1 {
			break
		}
		var latency []time.Duration
		started := map[int]int{}
		for _, s := range samples {
			if s.MaxInstances == setting {
				latency = append(latency, s.Latency)
				started[s.Run] = s.Started
			}
		}
		slices.Sort(latency)
		all := 0
		for _, n := range started {
			all += n
		}
		medians = append(medians, quantile(latency, 0.5))
		rows = append(rows, []string{fmt.Sprint(setting), fmt.Sprint(len(started)), fmt.Sprint(all),
			millis(quantile(latency, 0.5)), millis(quantile(latency, 0.9)), millis(quantile(latency, 1))})
	}
	if len(medians) == 2 && medians[0] > 0 {
		rows = append(rows, []string{"ratio", "", "", fmt.Sprintf("%.2f", float64(medians[1])/float64(medians[0])), "", ""})
	}
	return rows
}
