package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/suggest"
)

func (c *cli) benchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "measure starts, herds of requests, the gateway, containers",
		Example: `  skep bench start -n 20 --out samples.jsonl`,
	}
	onlyVerbs(cmd)
	cmd.AddCommand(c.benchStartCmd(), c.benchHerdCmd(), c.benchGatewayCmd(), c.benchContainerdCmd())
	return cmd
}

// benchFlags are what the flags of bench start were set to.
type benchFlags struct {
	function, cold, out, path string
	runs                      int
	starts, policies          []string
}

func (c *cli) benchStartCmd() *cobra.Command {
	var o benchFlags
	cmd := &cobra.Command{
		Use:   "start",
		Short: "measure every kind of start, interleaved, with cold caches",
		Long: `Measure every kind of start of a function with one vCPU and 256 MiB, on a
private daemon. Kinds take turns, so that a drifting machine is unfair to none.
Before each cold start the snapshot's files and the root disk are dropped from
the page cache (--cold all: the VMM's binary too; --cold none: nothing).

Medians and deciles go to stdout; --out keeps raw samples as JSON lines, the
first of which describes the machine.`,
		Example: `  skep bench start -n 20 --out samples.jsonl
  skep bench start --function hello --start restore --policy mmap,resident
  jq -r 'select(.variant) | [.variant, .record.phases.total_us] | @tsv' samples.jsonl`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			return c.benchStart(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.function, "function", "hello-python", "which of the functions that come with skep")
	f.StringVar(&o.path, "path", "/", "path that is requested")
	f.IntVarP(&o.runs, "runs", "n", 10, "runs of each kind")
	f.StringSliceVar(&o.starts, "start", []string{"restore", "warm"}, "kinds of start: boot, restore, warm")
	f.StringSliceVar(&o.policies, "policy", nil, "memory policies of restores (default: all)")
	f.StringVar(&o.cold, "cold", coldFiles, "what leaves the page cache before a start: none, files or all")
	f.StringVarP(&o.out, "out", "o", "", "`FILE` for raw samples, as JSON lines")
	c.keyFlags(f, "vmm", "accel", "qemu", "firecracker", "kernel", "kernel_modules", "kernel_dir", "data_dir", "log_level")
	return cmd
}

func (o benchFlags) check(cmd *cobra.Command) error {
	if o.runs < 1 {
		return usagef(cmd, "-n is %d: want 1 or more", o.runs)
	}
	if !slices.Contains([]string{coldNone, coldFiles, coldAll}, o.cold) {
		return usagef(cmd, "--cold is %q: want none, files or all", o.cold)
	}
	for _, s := range o.starts {
		if !slices.Contains([]api.StartKind{api.StartBoot, api.StartRestore, api.StartWarm}, api.StartKind(s)) {
			return usagef(cmd, "--start has %q: want boot, restore, warm", s)
		}
	}
	return nil
}

// variants are what takes turns: boots, restores under each policy, warm last,
// since what it leaves idle must end before the next start.
func (o benchFlags) variants(offered []string) ([]variant, error) {
	policies := o.policies
	if len(policies) == 0 {
		policies = offered
	}
	var out []variant
	for _, kind := range []api.StartKind{api.StartBoot, api.StartRestore, api.StartWarm} {
		switch {
		case !slices.Contains(o.starts, string(kind)):
		case kind != api.StartRestore:
			out = append(out, variant{start: kind})
		default:
			for _, p := range policies {
				if !slices.Contains(offered, p) {
					return nil, &usageError{msg: fmt.Sprintf("no memory policy %q%s (there are %s)", p, suggest.Text(p, offered), strings.Join(offered, ", "))}
				}
				out = append(out, variant{kind, p})
			}
		}
	}
	return out, nil
}

func (c *cli) benchStart(ctx context.Context, o benchFlags) (err error) {
	p, err := c.startPrivate(ctx, "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	variants, err := o.variants(p.version.Policies)
	if err != nil {
		return err
	}
	raw, closeRaw, err := o.openOut()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRaw()) }()
	host := describeMachine(p.version, p.d.cfg.DataDir)
	if err := raw.Encode(map[string]any{"machine": host, "function": o.function, "cold": o.cold}); err != nil {
		return err
	}
	m, remove, err := c.deployPrivate(ctx, p, o.function, api.Function{
		Name: "bench", VCPUs: 1, MemoryMiB: 256, KeepAlive: api.Duration(time.Second),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	m.cold, m.path = o.cold, o.path
	samples, err := c.benchRuns(ctx, m, o.runs, variants, raw)
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(map[string]any{"machine": host, "samples": samples})
	}
	fmt.Fprintf(c.out, "%s · %s · %d CPUs · Linux %s · %s\n\n", o.function, host.VMM, host.CPUs, host.Kernel, host.Disk)
	return table(c.out, phaseTable(samples, true))
}

func (c *cli) benchRuns(ctx context.Context, m *measurement, runs int, variants []variant, raw *json.Encoder) ([]sample, error) {
	// One restore that does not count, so that all policies find a recorded
	// working set; under reap it is of nothing but what the invocation touched.
	if _, err := m.one(ctx, -1, variant{start: api.StartRestore, policy: "reap"}); err != nil {
		return nil, err
	}
	var samples []sample
	for run := range runs {
		c.say("run %d of %d", run+1, runs)
		for _, v := range variants {
			s, err := m.one(ctx, run, v)
			if err != nil {
				return nil, err
			}
			if err := raw.Encode(s); err != nil {
				return nil, err
			}
			samples = append(samples, s)
		}
	}
	return samples, nil
}

// openOut opens the file for raw samples, or something that takes them.
func (o benchFlags) openOut() (*json.Encoder, func() error, error) {
	if o.out == "" {
		return json.NewEncoder(io.Discard), func() error { return nil }, nil
	}
	f, err := os.Create(o.out)
	if err != nil {
		return nil, nil, err
	}
	return json.NewEncoder(f), f.Close, nil
}
