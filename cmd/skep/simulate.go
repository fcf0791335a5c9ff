package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/scale/sim"
)

// simulateFlags are what the flags of simulate were set to.
type simulateFlags struct {
	trace     traceFlags
	policies  []string
	starts    []string
	costs     string
	nodes     int
	nodeMiB   int64
	placement string
	bases     int
	least     int
	most      int
	per       int
	target    float64
	keepAlive time.Duration
	timeout   time.Duration
	parallel  int
	out       string
}

func (c *cli) simulateCmd() *cobra.Command {
	var o simulateFlags
	cmd := &cobra.Command{
		Use:   "simulate [TRACE]",
		Short: "compare scaling policies on a trace, in virtual time and without microVMs",
		Long: `Run scaling policies in virtual time: the invocations of a trace meet the same
code that decides live, on a cluster whose starts take what starts took on this
machine, as distributions. TRACE is a published one (` + "`skep workload -h`" + ` says
which); without it one is made up with the published statistics.

Costs are taken from the records in data_dir, or with --costs from a file: what
` + "`skep simulate costs`" + ` wrote, or the raw samples of ` + "`skep bench start --out`" + ` or
` + "`skep experiment`" + `. A kind of start is "boot", or the memory policy of restores.

Policies, with their parameters and defaults; written as fixed:keep-alive=10m,
or kpa:stable-window=30s,target-utilization=0.8 (quote several as one --policy each):
` + scale.Describe() + `
Memory is the trace and some kilobytes for each function; a run is a function of
its flags and --seed.`,
		Example: `  skep bench start --start boot,restore,warm --out costs.jsonl
  skep simulate --costs costs.jsonl --start boot,mmap,stream --policy fixed --policy break-even
  skep simulate azure2019/ --day 3 --nodes 100 --node-memory-mib 131072 --placement snapshot-aware
  skep simulate --functions 50000 --policy hybrid --json > day.json`,
		Args: nArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.simulate(cmd.Context(), o, args)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&o.policies, "policy", nil, "scaling policy; several times (default: each)")
	f.StringSliceVar(&o.starts, "start", nil, "kinds of start (default: each that there are costs of)")
	f.StringVar(&o.costs, "costs", "", "`FILE` with what starts take (default: the records in data_dir)")
	f.IntVar(&o.nodes, "nodes", 1, "nodes of the cluster")
	f.Int64Var(&o.nodeMiB, "node-memory-mib", 0, "memory of a node for instances (default: no limit)")
	f.StringVar(&o.placement, "placement", string(sim.Spread), "where instances start: spread, pack, snapshot-aware or chunk-aware")
	f.IntVar(&o.bases, "bases", 8, "images that snapshots are built on, with chunks in common (1 to 64; costs say which part of a fetch that is)")
	f.IntVar(&o.least, "min-instances", 0, "instances of each function at least")
	f.IntVar(&o.most, "max-instances", 1000, "instances of each function at most")
	f.IntVar(&o.per, "concurrency", 1, "requests at once in an instance")
	f.Float64Var(&o.target, "target-utilization", 1, "share of --concurrency beyond which others are started")
	f.DurationVar(&o.keepAlive, "keep-alive", time.Minute, "of functions, for the policy fixed")
	f.DurationVar(&o.timeout, "queue-timeout", time.Minute, "how long a request waits at most")
	f.IntVar(&o.parallel, "parallel", runtime.GOMAXPROCS(0), "simulations at once")
	f.StringVarP(&o.out, "out", "o", "", "`FILE` for the results as JSON lines, with memory minute by minute")
	o.trace.add(f)
	c.keyFlags(f, "data_dir")
	cmd.AddCommand(c.simulateCostsCmd())
	return cmd
}

func (c *cli) simulateCostsCmd() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:     "costs",
		Short:   "write what starts took on this machine, for simulate --costs",
		Example: `  skep simulate costs > costs.json`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			costs, err := c.costs(cmd.Context(), from)
			if err != nil {
				return err
			}
			return costs.Write(c.out)
		},
	}
	cmd.Flags().StringVar(&from, "costs", "", "`FILE` with raw samples (default: the records in data_dir)")
	c.keyFlags(cmd.Flags(), "data_dir")
	return cmd
}

// costs reads them from a file, or from the records of the daemon's database.
func (c *cli) costs(ctx context.Context, file string) (*sim.Costs, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("reading costs: %w", err)
		}
		defer f.Close()
		costs, err := sim.ReadCosts(f)
		if err != nil {
			return nil, fmt.Errorf("reading costs from %s: %w", file, err)
		}
		return costs, nil
	}
	set, err := c.settings()
	if err != nil {
		return nil, err
	}
	const cure = "; `skep bench start --start boot,restore,warm --out FILE` measures them, and --costs FILE reads that"
	path := filepath.Join(set.Config.DataDir, "skep.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there are no records in %s%s", set.Config.DataDir, cure)
	}
	records, err := node.OpenRecords(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	all, err := records.Invocations(ctx, node.InvocationFilter{Limit: mostRecords})
	if err = errors.Join(err, records.Close()); err != nil {
		return nil, err
	}
	costs, err := sim.FromRecords(all)
	if err != nil {
		return nil, fmt.Errorf("records in %s: %w%s", path, err, cure)
	}
	return costs, nil
}

// mostRecords are looked at for costs, the newest.
const mostRecords = 200_000

func (c *cli) simulate(ctx context.Context, o simulateFlags, args []string) error {
	costs, err := c.costs(ctx, o.costs)
	if err != nil {
		return err
	}
	runs, err := o.runs(costs)
	if err != nil {
		return err
	}
	raw, closeRaw, err := benchFlags{out: o.out}.openOut()
	if err != nil {
		return err
	}
	tr, err := o.trace.read(args, c.say)
	if err != nil {
		return errors.Join(err, closeRaw())
	}
	c.say("%d functions, %d invocations in %v; the trace takes %s", len(tr.Functions), tr.Calls(), tr.Length(), size(tr.Bytes()))
	results := make([]*sim.Result, len(runs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, o.parallel))
	var mu sync.Mutex
	for i, run := range runs {
		run.Trace = tr
		run.Progress = c.simulateProgress(&mu, run)
		group.Go(func() error {
			r, err := sim.Run(ctx, run)
			results[i] = r
			return err
		})
	}
	err = group.Wait()
	for _, r := range results {
		if err == nil {
			err = raw.Encode(r)
		}
	}
	if err = errors.Join(err, closeRaw()); err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(map[string]any{"costs": costs.Source, "results": results})
	}
	fmt.Fprintf(c.out, "%d functions · %d invocations in %v · costs of %s\n\n", results[0].Functions, results[0].Calls, results[0].Length, costs.Source)
	return table(c.out, simulateTable(results))
}

// runs are the simulations that are asked for, without their trace.
func (o *simulateFlags) runs(costs *sim.Costs) ([]sim.Config, error) {
	policies, starts := o.policies, o.starts
	if len(policies) == 0 {
		policies = scale.Names()
	}
	if len(starts) == 0 {
		starts = costs.Names()
	}
	if !slices.Contains(sim.Placements, sim.Placement(o.placement)) {
		return nil, &usageError{msg: fmt.Sprintf("--placement is %q: want one of %v", o.placement, sim.Placements)}
	}
	var runs []sim.Config
	for _, policy := range policies {
		spec, err := scale.Parse(policy)
		if err != nil {
			return nil, &usageError{msg: err.Error()}
		}
		for _, start := range starts {
			if _, ok := costs.Starts[start]; !ok {
				return nil, &usageError{msg: fmt.Sprintf("--start is %q: there are costs of %s", start, strings.Join(costs.Names(), ", "))}
			}
			runs = append(runs, sim.Config{Policy: spec, Start: start, Costs: costs, Nodes: o.nodes, NodeMiB: o.nodeMiB, Placement: sim.Placement(o.placement), Bases: o.bases,
				KeepAlive: o.keepAlive, MinInstances: o.least, MaxInstances: o.most, Concurrency: o.per, Utilization: o.target, QueueTimeout: o.timeout, Seed: o.trace.seed})
		}
	}
	return runs, nil
}

// simulateProgress says on a terminal how far a run is, in one line that is written over.
func (c *cli) simulateProgress(mu *sync.Mutex, run sim.Config) func(minute, of int) {
	if !terminal(c.err) || c.json {
		return nil
	}
	return func(minute, of int) {
		if minute%20 != 0 && minute != of {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(c.err, "\r\x1b[K%s, %s: %d%%", run.Policy, run.Start, 100*minute/of)
		if minute == of {
			fmt.Fprint(c.err, "\r\x1b[K")
		}
	}
}

func simulateTable(results []*sim.Result) [][]string {
	rows := [][]string{{"POLICY", "START", "COLD", "COLD p75 OF FUNCTIONS", "SLOWDOWN p50", "p99", "p99.9", "WAIT p99", "MEMORY", "PEAK", "IDLE", "STARTS", "AHEAD", "EVICTED", "LOST", "TOOK"}}
	percent := func(v float64) string { return fmt.Sprintf("%.3g%%", v*100) }
	gib := func(mib float64) string { return fmt.Sprintf("%.4g GiB", mib/1024) }
	fetched := slices.ContainsFunc(results, func(r *sim.Result) bool { return r.Fetches > 0 })
	if fetched {
		rows[0] = append(rows[0], "SNAPSHOTS FETCHED")
	}
	for i, r := range results {
		rows = append(rows, []string{r.Policy, r.Start, percent(r.ColdPart), percent(r.ColdOf.P75), fmt.Sprintf("%.3g", r.Slowdown.P50), fmt.Sprintf("%.3g", r.Slowdown.P99), fmt.Sprintf("%.3g", r.Slowdown.P999),
			millis(time.Duration(r.Wait.P99*1e9)) + " ms", gib(r.Memory.MeanMiB), gib(r.Memory.PeakMiB), percent(r.Memory.IdlePart), fmt.Sprint(r.Starts), fmt.Sprint(r.Ahead), fmt.Sprint(r.Evicted), fmt.Sprint(r.Lost), r.Took.Round(time.Millisecond).String()})
		if fetched {
			rows[i+1] = append(rows[i+1], fmt.Sprintf("%.1f", r.Fetched))
		}
	}
	return rows
}

// traceFlags choose a trace, or make one.
type traceFlags struct {
	day       int
	memoryMiB float64
	functions int
	from      int
	minutes   int
	rate      float64
	seed      uint64
}

func (t *traceFlags) add(f *pflag.FlagSet) {
	f.IntVar(&t.day, "day", 0, "day of a trace that has a file for each (default: the first there is)")
	f.Float64Var(&t.memoryMiB, "memory-mib", 170, "memory of functions of which the trace does not say")
	f.IntVar(&t.functions, "functions", 1000, "made up: functions")
	f.Float64Var(&t.rate, "rate", 1, "made up: times the published rates")
	f.IntVar(&t.from, "from", 0, "minute at which to begin")
	f.IntVar(&t.minutes, "minutes", 0, "minutes of the trace (default: all; made up: a day)")
	f.Uint64Var(&t.seed, "seed", 1, "of all that is by chance: the same gives the same")
}

// read reads the trace that is named, or makes one.
func (t *traceFlags) read(args []string, say func(string, ...any)) (*trace.Trace, error) {
	if len(args) == 0 {
		minutes := 0
		if t.minutes > 0 {
			minutes = t.from + t.minutes
		}
		say("making a trace of %d functions", t.functions)
		tr, err := trace.Generator{Functions: t.functions, Minutes: minutes, Rate: t.rate, Seed: t.seed}.Make()
		if err != nil || t.from == 0 {
			return tr, err
		}
		return tr.Slice(t.from, tr.Minutes()-t.from)
	}
	say("reading %s", args[0])
	tr, err := trace.Open(args[0], trace.Options{Day: t.day, MemoryMiB: t.memoryMiB})
	if err != nil || t.from == 0 && t.minutes == 0 {
		return tr, err
	}
	minutes := t.minutes
	if minutes == 0 {
		minutes = tr.Minutes() - t.from
	}
	return tr.Slice(t.from, minutes)
}
