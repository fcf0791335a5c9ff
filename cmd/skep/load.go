package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/load"
)

// loadFlags are what the flags of load were set to.
type loadFlags struct {
	trace     traceFlags
	source    string
	duration  time.Duration
	took      time.Duration
	mib       int
	speed     float64
	url, host string
	function  string
	deploy    bool
	keepAlive time.Duration
	most      int
	out       string
	timeout   time.Duration
	inFlight  int
	compare   []string
}

func (c *cli) loadCmd() *cobra.Command {
	var o loadFlags
	cmd := &cobra.Command{
		Use:   "load [TRACE]",
		Short: "call functions by a rate or a trace, open loop, and measure latency and cold starts",
		Long: `Call functions by a plan: each call is sent when it is due, whether or not those
before it are answered, and its latency counts from when it was due. The plan is
a rate (--source) or a TRACE (` + "`skep workload -h`" + ` says which are read), whose time
may pass faster (--speed).

--source is one of
  constant:rate=10                       a call every tenth of a second
  poisson:rate=10                        ten a second, at random
  mmpp:low=1,high=50,calm=20s,burst=2s   between two rates, at random
  steps:from=5,by=5,every=10s            faster step by step

Calls go to skep's gateway, or to any --url, in which {function}, {ms} and {mib}
stand for the function, for how long it is to run and what memory it is to take.
A trace's functions are called load-0, load-1, …; --deploy makes them of the
built-in function hello, whose /work burns what it is told, and removes those
afterwards that were not there.

--out is a directory: calls.jsonl has a line for each call that is over, and
calls.db the same for SQLite. A run that was stopped goes on when it is asked for
again. In a pipe the progress is a line of key=value every five seconds. The exit
code is 1 if a call was lost: it has no answer of the function, or one of 400 or more.`,
		Example: `  skep load --source poisson:rate=20 --duration 1m --function hello --took 20ms --out a
  skep load small/ --from 480 --minutes 60 --speed 12 --deploy --out hour
  skep load --source constant:rate=5 --duration 30s --url http://hello.default.example/ --out knative
  skep load --compare a,b`,
		Args: nArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(o.compare) > 0 {
				if len(o.compare) != 2 || len(args) > 0 {
					return usagef(cmd, "--compare wants two directories, as a,b, and nothing else")
				}
				return c.compareLoads(o.compare[0], o.compare[1])
			}
			if o.out == "" || (o.source == "") == (len(args) == 0) {
				return usagef(cmd, "want --out, and either --source or a trace")
			}
			return c.load(cmd.Context(), o, args)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.source, "source", "", "rate of calls of one function")
	f.DurationVar(&o.duration, "duration", time.Minute, "of a source")
	f.StringVar(&o.function, "function", "hello", "function that a source calls")
	f.DurationVar(&o.took, "took", 20*time.Millisecond, "how long each call of a source is to run")
	f.IntVar(&o.mib, "mib", 0, "memory that each call of a source is to take")
	f.Float64Var(&o.speed, "speed", 1, "how many times as fast the time of a trace passes")
	f.StringVar(&o.url, "url", "", "what is called (default: /work of the function, through skep's gateway)")
	f.StringVar(&o.host, "host", "", "Host header, in which {function} stands for the function's name")
	f.BoolVar(&o.deploy, "deploy", false, "deploy the plan's functions that are not there, and remove them afterwards")
	f.DurationVar(&o.keepAlive, "keep-alive", time.Minute, "of functions that are deployed")
	f.IntVar(&o.most, "max-instances", 8, "of functions that are deployed")
	f.StringVarP(&o.out, "out", "o", "", "`DIR` of results")
	f.DurationVar(&o.timeout, "timeout", 70*time.Second, "of a call")
	f.IntVar(&o.inFlight, "in-flight", 10000, "calls at once; one that is due beyond waits, and that counts as its latency")
	f.StringSliceVar(&o.compare, "compare", nil, "compare the latencies of two runs: `A,B`")
	o.trace.add(f)
	for _, name := range []string{"functions", "rate"} {
		_ = f.MarkHidden(name) // of traces that are made up
	}
	c.keyFlags(f, "listen")
	return cmd
}

func (c *cli) load(ctx context.Context, o loadFlags, args []string) (err error) {
	plan, err := o.plan(args, c.say)
	if err != nil {
		return err
	}
	opts := load.Options{Plan: plan, URL: o.url, Host: o.host, Dir: o.out, Timeout: o.timeout, InFlight: o.inFlight, Progress: c.loadProgress()}
	if o.url == "" {
		client, err := c.client()
		if err != nil {
			return err
		}
		defer client.Close()
		if opts.URL, err = c.gatewayURL(); err != nil {
			return err
		}
		opts.Memory = memoryOf(client, plan)
		if o.deploy {
			remove, deployErr := c.deployPlan(ctx, client, plan, o)
			defer func() { err = errors.Join(err, remove()) }()
			if deployErr != nil {
				return deployErr
			}
		}
	} else if o.deploy {
		return &usageError{msg: "--deploy deploys at skep, not at another --url"}
	}
	c.say("%d calls of %d functions in %v", len(plan.Calls), len(plan.Functions), plan.Calls[len(plan.Calls)-1].At.Round(time.Millisecond))
	report, err := load.Run(ctx, opts)
	if err != nil {
		return err
	}
	if err := load.WriteDatabase(ctx, o.out); err != nil {
		return err
	}
	if err := c.showLoad(report); err != nil {
		return err
	}
	if report.Lost > 0 {
		return fmt.Errorf("%d of %d calls were lost; `lost` in %s says why", report.Lost, report.Done, o.out)
	}
	return nil
}

func (o *loadFlags) plan(args []string, say func(string, ...any)) (*load.Plan, error) {
	if o.source != "" {
		p, err := load.Synthetic{Source: o.source, Duration: o.duration, Took: o.took, MiB: o.mib, Function: o.function, Seed: o.trace.seed}.Plan()
		if err != nil {
			return nil, &usageError{msg: err.Error()}
		}
		return p, nil
	}
	tr, err := o.trace.read(args, say)
	if err != nil {
		return nil, err
	}
	return load.OfTrace(tr, args[0], o.speed, o.trace.seed)
}

// gatewayURL is where the daemon's gateway takes calls of /work.
func (c *cli) gatewayURL() (string, error) {
	set, err := c.settings()
	if err != nil {
		return "", err
	}
	host := set.Config.Listen
	if strings.HasPrefix(host, ":") {
		host = "127.0.0.1" + host
	}
	return "http://" + host + "/function/{function}/work?ms={ms}&mib={mib}", nil
}

// memoryOf sums up the guest memory of the instances of the plan's functions.
func memoryOf(client *api.Client, plan *load.Plan) func(context.Context) (load.Memory, error) {
	var known atomic.Pointer[map[string]float64] // MiB of each function's instances
	return func(ctx context.Context) (m load.Memory, err error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if known.Load() == nil {
			functions, err := client.Functions(ctx)
			if err != nil {
				return m, err
			}
			mib := map[string]float64{}
			for _, f := range functions {
				if slices.Contains(plan.Functions, f.Name) {
					mib[f.Name] = float64(f.MemoryMiB)
				}
			}
			known.Store(&mib)
		}
		instances, err := client.Instances(ctx, "")
		for _, i := range instances {
			if mib, ok := (*known.Load())[i.Function]; ok {
				m.Instances++
				m.MiB += mib
			}
		}
		return m, err
	}
}

// guestMiB is what a guest needs beside what a call takes: kernel, agent, the function's
// own.
const guestMiB = 96

// deployPlan deploys the plan's functions that are not there. remove removes those again.
func (c *cli) deployPlan(ctx context.Context, client *api.Client, plan *load.Plan, o loadFlags) (remove func() error, err error) {
	var made []string
	remove = func() (err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for _, name := range made {
			err = errors.Join(err, client.RemoveFunction(ctx, name))
		}
		return err
	}
	there, err := client.Functions(ctx)
	if err != nil {
		return remove, err
	}
	var image string
	for i, name := range plan.Functions {
		if slices.ContainsFunc(there, func(f api.FunctionStatus) bool { return f.Name == name }) {
			continue
		}
		if image == "" {
			if image, err = c.localImage(ctx, "functions/hello"); err != nil {
				return remove, err
			}
		}
		mib := max(128, int(math.Ceil((plan.MemoryMiB[i]+guestMiB)/64))*64)
		c.say("deploying %s, %d of %d, with %d MiB", name, i+1, len(plan.Functions), mib)
		f := api.Function{Name: name, Image: image, MemoryMiB: mib, ReadyTimeout: api.Duration(5 * time.Minute), KeepAlive: api.Duration(o.keepAlive), MaxInstances: o.most, QueueLimit: 100_000}
		if _, err := client.Deploy(ctx, f, nil); err != nil {
			return remove, fmt.Errorf("deploying %s: %w", name, err)
		}
		made = append(made, name)
	}
	return remove, nil
}

// progressEvery is how often a line of progress goes into a pipe.
const progressEvery = 5 * time.Second

// loadProgress shows progress: on a terminal a line that is written over, elsewhere a line of
// key=value now and then.
func (c *cli) loadProgress() func(load.Progress) {
	if c.json {
		return nil
	}
	said := time.Time{}
	return func(p load.Progress) {
		if terminal(c.err) {
			fmt.Fprintf(c.err, "\r\x1b[K%s of %s · sent %d of %d · %d in flight · %d answered, %d cold, %d lost · p50 %s, p99 %s ms", p.Elapsed.Round(time.Second), p.Length.Round(time.Second),
				p.Sent, p.Of, p.InFlight, p.Done, p.Cold, p.Lost, millis(p.Median), millis(p.P99))
			if p.Over {
				fmt.Fprint(c.err, "\r\x1b[K")
			}
			return
		}
		if time.Since(said) < progressEvery && !p.Over {
			return
		}
		said = time.Now()
		fmt.Fprintf(c.err, "elapsed_s=%.1f length_s=%.1f sent=%d of=%d in_flight=%d done=%d cold=%d lost=%d p50_ms=%.3f p99_ms=%.3f\n", p.Elapsed.Seconds(), p.Length.Seconds(),
			p.Sent, p.Of, p.InFlight, p.Done, p.Cold, p.Lost, p.Median.Seconds()*1000, p.P99.Seconds()*1000)
	}
}

func (c *cli) showLoad(r *load.Report) error {
	if c.json {
		return c.writeJSON(r)
	}
	fmt.Fprintf(c.out, "%s · seed %d · %d of %d calls · %d lost · %d cold (%.3g%%)", r.Source, r.Seed, r.Done, r.Calls, r.Lost, r.Cold, r.ColdPart*100)
	if r.Untold > 0 {
		fmt.Fprintf(c.out, " · of %d the server does not say", r.Untold)
	}
	if r.MemoryPeak > 0 {
		fmt.Fprintf(c.out, " · guest memory %.0f MiB in the mean, %.0f at most", r.MemoryMean, r.MemoryPeak)
	}
	fmt.Fprint(c.out, "\n\n")
	for _, why := range slices.Sorted(maps.Keys(r.Reasons)) {
		fmt.Fprintf(c.err, "lost %d: %s\n", r.Reasons[why], why)
	}
	rows := [][]string{{"", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"}}
	add := func(name string, q load.Quantiles) {
		row := []string{name}
		for _, v := range []float64{q.Mean, q.P50, q.P90, q.P99, q.P999, q.Max} {
			row = append(row, fmt.Sprintf("%.4g", v))
		}
		rows = append(rows, row)
	}
	add("latency ms", r.Latency)
	if r.Cold > 0 {
		add("  cold", r.LatencyCold)
		add("  warm", r.LatencyWarm)
	}
	add("slowdown", r.Slowdown)
	add("sent late ms", r.Late)
	return table(c.out, rows)
}

func (c *cli) compareLoads(a, b string) error {
	ra, errA := load.Read(a)
	rb, errB := load.Read(b)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	rows := load.Compare(ra, rb)
	if c.json {
		return c.writeJSON(map[string]any{"a": ra, "b": rb, "compared": rows})
	}
	out := [][]string{{"CALLS", "A p50 ms", "B p50 ms", "A p99", "B p99", "B/A (medians)", "95% INTERVAL", "p"}}
	for _, r := range rows {
		p := "–"
		if r.P != nil {
			p = fmt.Sprintf("%.3f", *r.P)
		}
		out = append(out, []string{r.Calls, fmt.Sprintf("%.4g", r.A.P50), fmt.Sprintf("%.4g", r.B.P50), fmt.Sprintf("%.4g", r.A.P99), fmt.Sprintf("%.4g", r.B.P99),
			fmt.Sprintf("%.3f", r.Change.Value), fmt.Sprintf("%.3f–%.3f", r.Change.Lo, r.Change.Hi), p})
	}
	out = append(out, []string{"cold", fmt.Sprintf("%.3g%%", ra.ColdPart*100), fmt.Sprintf("%.3g%%", rb.ColdPart*100)}, []string{"lost", fmt.Sprint(ra.Lost), fmt.Sprint(rb.Lost)})
	return table(c.out, out)
}
