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

Percentiles and the count of microVMs started go to stdout; --out keeps raw
samples as JSON lines, the first of which describes the machine.`,
		Example: `  skep bench herd -n 5 --out herd.jsonl
  skep bench herd --path '/sleep?ms=2000'      # long enough for starts to be worth it`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.runs < 1 || o.requests < 1 || o.max < 2 {
				return usagef(cmd, "-n is %d, --requests %d, --max %d: want 1 or more, 1 or more, 2 or more", o.runs, o.requests, o.max)
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

// herdKeepAlive is longer than a herd takes, so that what was started for it is
// still there to be counted; between herds nothing is kept.
const herdKeepAlive = 10 * time.Minute

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
		Name: "bench", VCPUs: 1, MemoryMiB: 128,
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
	warm, err := m.oneWarm(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := m.client.Set(ctx, m.function, map[string]any{"max_instances": most}, nil); err != nil {
		return nil, err
	}
	samples, errs := make([]herdSample, requests), make([]error, requests)
	var wg sync.WaitGroup
	loose := make(chan struct{})
	for i := range samples {
		wg.Go(func() {
			<-loose
			s := herdSample{Run: run, MaxInstances: most}
			s.Record, s.Latency, errs[i] = m.timed(ctx, variant{})
			samples[i] = s
		})
	}
	close(loose)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	there, err := m.client.Instances(ctx, m.function)
	if err != nil {
		return nil, err
	}
	started := startedBeside(warm, there, samples)
	for i := range samples {
		samples[i].Started = started
	}
	return samples, nil
}

// oneWarm ends all instances and makes one that has served, and returns its id.
func (m *measurement) oneWarm(ctx context.Context) (string, error) {
	if _, err := m.client.Set(ctx, m.function, map[string]any{"max_instances": 1, "keep_alive": "1ms"}, nil); err != nil {
		return "", err
	}
	if err := m.quiet(ctx); err != nil {
		return "", err
	}
	if _, err := m.client.Set(ctx, m.function, map[string]any{"keep_alive": herdKeepAlive.String()}, nil); err != nil {
		return "", err
	}
	for range 4 { // one starts the instance, the others show how long requests take
		if _, err := m.invoke(ctx, variant{}); err != nil {
			return "", err
		}
	}
	for {
		there, err := m.client.Instances(ctx, m.function)
		switch {
		case err != nil:
			return "", err
		case len(there) != 1:
			return "", fmt.Errorf("%s has %d instances after requests one by one: a herd wants 1 that is warm; `skep bench herd --log-level info` tells what became of it", m.function, len(there))
		case there[0].State == api.InstanceIdle:
			return there[0].ID, nil
		}
		select { // the last request is answered, but not yet let go
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// startedBeside counts the instances beside the warm one: those that are there,
// of which some served nobody, and those that served and have ended.
func startedBeside(warm string, there []api.Instance, samples []herdSample) int {
	ids := map[string]bool{warm: true}
	for _, i := range there {
		ids[i.ID] = true
	}
	for _, s := range samples {
		ids[s.Record.Instance] = true
	}
	return len(ids) - 1
}

// herdTable has a row for each setting, and the ratio of their medians.
func herdTable(samples []herdSample, most int) [][]string {
	rows := [][]string{{"MAX INSTANCES", "HERDS", "STARTED", "P50 ms", "P99 ms", "MAX ms"}}
	var medians []time.Duration
	for _, setting := range []int{1, most} {
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
			millis(quantile(latency, 0.5)), millis(quantile(latency, 0.99)), millis(quantile(latency, 1))})
	}
	if medians[0] > 0 {
		rows = append(rows, []string{"ratio", "", "", fmt.Sprintf("%.2f", float64(medians[1])/float64(medians[0])), "", ""})
	}
	return rows
}
