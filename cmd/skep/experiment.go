package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/report"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory"
)

func (c *cli) experimentCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "experiment",
		Short: "re-create the paper's figures, as raw data and as a report",
		Long: `Re-create the figures and numbers of the ASPLOS'21 paper on this machine. Each
experiment is a verb; all runs every one. Raw samples go to --out first; report
makes figures and tables of them, and compare says what differs between two
runs. Running with the same --out again goes on where it was interrupted.`,
		Example: `  skep experiment all --quick --out /tmp/quick
  skep experiment policies --functions helloworld,pyaes --policies mmap,reap,stream --runs 10 --out a
  skep experiment report a
  skep experiment compare a b`,
	}
	onlyVerbs(cmd)
	var names []string
	for _, e := range experiment.All() {
		names = append(names, e.Name)
		one := c.runExperimentCmd(e.Name, e.Figure+": "+e.Title, e.Question, []string{e.Name})
		if e.Functions != nil { // the flag's value is what it may take of
			one.Flags().Lookup("functions").DefValue = "[" + strings.Join(e.Functions, ",") + "]"
		}
		cmd.AddCommand(one)
	}
	cmd.AddCommand(
		c.runExperimentCmd("all", "every figure of the paper, and a report", "Run every experiment, one after the other.", names),
		c.experimentReportCmd(), c.experimentCompareCmd())
	return cmd
}

// experimentFlags are what the flags of an experiment were set to.
type experimentFlags struct {
	set     experiment.Settings
	out     string
	mbs     int64
	cluster string
	only    []string // of the experiments of `all`
}

func (c *cli) runExperimentCmd(name, short, long string, experiments []string) *cobra.Command {
	var o experimentFlags
	cmd := &cobra.Command{
		Use: name, Short: short,
		Long: long + `

A private daemon is started for it. Before each cold start the files that it
reads are taken out of the page cache, and the kernel is asked whether they are
gone. Variants take turns, run by run.`,
		Example: fmt.Sprintf("  skep experiment %s --quick --out /tmp/quick\n  skep experiment %[1]s --functions helloworld,pyaes --runs 20 --out paper", name),
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.set.Experiments = experiments
			if cmd.Flags().Changed("only") {
				o.set.Experiments = o.only
			}
			if err := o.complete(cmd); err != nil {
				return err
			}
			return c.runExperiments(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.out, "out", "o", "paper", "`DIRECTORY` of results; what it has is not measured again")
	f.IntVarP(&o.set.Runs, "runs", "n", 0, "runs of each variant (default: as many as each experiment needs, 10 at most; quick: 2)")
	f.StringSliceVar(&o.set.Functions, "functions", experiment.DefaultFunctions(), "which of the functions that come with skep")
	f.StringSliceVar(&o.set.Policies, "policies", nil, "memory policies, where they are compared over functions (default mmap,reap,stream,resident)")
	f.StringVar(&o.set.Cold, "cold", experiment.ColdFiles, "what leaves the page cache before a start: none, files or all")
	f.BoolVar(&o.set.Quick, "quick", false, "some five minutes: two functions, two runs, few at once")
	f.IntVar(&o.set.MaxVMs, "max-vms", 8, "microVMs at once, in concurrency")
	f.IntVar(&o.set.MaxReplays, "max-replays", 64, "replays at once, in concurrency")
	f.DurationVar(&o.set.KeepAlive, "keep-alive", 0, "how long an instance stays for a warm call, longer where that takes long to come (default 400ms)")
	f.Int64Var(&o.mbs, "slow-mbs", 100, "MB/s of the slow disk")
	f.Int64Var(&o.set.Storage.IOPS, "slow-iops", 500, "reads a second of the slow disk")
	if len(experiments) > 1 {
		f.StringSliceVar(&o.only, "only", nil, "these `EXPERIMENTS`, in this order")
	}
	if slices.Contains(experiments, "scaling") {
		s := &o.set.Scaling
		f.StringSliceVar(&s.Policies, "scaling", nil, "scaling policies of the experiment scaling (default: each; quick: fixed,break-even)")
		f.IntVar(&s.LiveFunctions, "live-functions", 0, "of its live trace, which lasts --live-minutes and passes --live-speed times as fast (default 4; quick: 2)")
		f.IntVar(&s.LiveMinutes, "live-minutes", 0, "(default 60; quick: 30)")
		f.Float64Var(&s.Speed, "live-speed", 0, "(default 30; quick: 60)")
		f.IntVar(&s.Functions, "simulated-functions", 0, "of the trace that it simulates, for --simulated-minutes, at --simulated-rate times the published rates (default 1000; quick: 200)")
		f.IntVar(&s.Minutes, "simulated-minutes", 0, "(default 360; quick: 120)")
		f.Float64Var(&s.Rate, "simulated-rate", 0, "(default 0.2; quick: 0.1)")
		f.Uint64Var(&s.Seed, "seed", 1, "of its traces")
	}
	if slices.Contains(experiments, "stack") {
		f.StringVar(&o.cluster, "cluster", "", "`DIRECTORY` of the cluster that stack is measured on (default: KUBECONFIG's, or "+cluster.DefaultDir+")")
	}
	c.keyFlags(f, "vmm", "accel", "qemu", "firecracker", "kernel", "kernel_modules", "kernel_dir", "data_dir", "shells", "log_level")
	f.Lookup("shells").DefValue = "0"
	return cmd
}

// complete fills in what --quick changes and checks the rest.
func (o *experimentFlags) complete(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	o.set.Storage.BPS = o.mbs * 1e6
	o.set.Chosen = changed("functions")
	if o.set.Quick {
		if !changed("runs") {
			o.set.Runs = 2
		}
		if !changed("functions") {
			o.set.Functions = o.set.Functions[:min(2, len(o.set.Functions))]
		}
		if !changed("max-vms") {
			o.set.MaxVMs = 2
		}
		if !changed("max-replays") {
			o.set.MaxReplays = 8
		}
	}
	switch {
	case changed("runs") && o.set.Runs < 1:
		return usagef(cmd, "--runs is %d: want 1 or more", o.set.Runs)
	case len(o.set.Functions) == 0:
		return usagef(cmd, "--functions is empty")
	case o.set.KeepAlive < 0:
		return usagef(cmd, "--keep-alive is %v: want 0 or more", o.set.KeepAlive)
	case len(o.set.Experiments) == 0:
		return usagef(cmd, "--only is empty")
	case o.set.Storage.BPS < 1 || o.set.Storage.IOPS < 1:
		return usagef(cmd, "--slow-mbs and --slow-iops want 1 or more")
	case !slices.Contains([]string{experiment.ColdNone, experiment.ColdFiles, experiment.ColdAll}, o.set.Cold):
		return usagef(cmd, "--cold is %q: want none, files or all", o.set.Cold)
	}
	if err := o.set.Scaling.Check(); err != nil {
		return usagef(cmd, "%v", err)
	}
	for _, name := range o.set.Experiments {
		if _, err := experiment.Find(name); err != nil {
			return usagef(cmd, "--only: %v", err)
		}
	}
	for _, f := range o.set.Functions {
		if !slices.Contains(functions.Names(), f) {
			return usagef(cmd, "--functions has %q: there are %s", f, strings.Join(functions.Names(), ", "))
		}
	}
	return nil
}

func (c *cli) runExperiments(ctx context.Context, o experimentFlags) (err error) {
	var k *knative
	if wantsKnative(o.set) {
		if k, err = c.findKnative(ctx, o.cluster, &o.set); err != nil {
			return err
		}
	}
	r, err := c.settings()
	if err != nil {
		return err
	}
	if r.From["shells"] != "default" {
		o.set.Shells = r.Config.Shells // as the private daemon will have it
	}
	if _, err := s3Server(); err != nil && wantsStore(o.set) {
		o.set.WithoutStore = err.Error()
	}
	plan, without, err := experiment.Plan(o.set)
	if err != nil {
		return err
	}
	if len(plan) == 0 && len(without) > 0 {
		return fmt.Errorf("nothing to measure: %s", strings.Join(without, "; "))
	}
	for _, w := range without {
		c.say("left out: %s", w)
	}
	var planned []string
	for _, p := range plan {
		planned = append(planned, p.Function)
	}
	stop, err := c.startInputs(ctx, planned)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var objects *objectStore
	if wantsStore(o.set) && o.set.WithoutStore == "" {
		if objects, err = c.startStore(ctx, privateData(r, "experiment")); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, objects.stop()) }()
	}
	if c.flags["cgroup_root"] == "" {
		c.flags["cgroup_root"] = "none" // machines stay in the group of this process, which storage limits
	}
	p, err := c.startPrivate(ctx, "experiment")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for _, policy := range o.set.Policies {
		if !slices.Contains(p.version.Policies, policy) {
			return &usageError{msg: fmt.Sprintf("--policies has %q: there are %s", policy, strings.Join(p.version.Policies, ", "))}
		}
	}
	session := experiment.Describe(p.version, p.d.cfg.DataDir, o.set)
	session.Learning = p.d.cfg.Learning
	store, err := experiment.OpenStore(o.out, session)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	left, takes := store.Left(plan)
	c.say("%d of %d points to measure on %s, about %s", len(left), len(plan), p.version.VMM, takes.Round(time.Minute/6))
	if err := c.measure(ctx, o, p, k, objects, store, left); err != nil {
		if now, _ := store.Left(plan); len(now) < len(plan) {
			c.say("what was measured is kept: run the same again to go on")
			if ctx.Err() == nil {
				err = errors.Join(err, c.writeReport(ctx, o.out))
			}
		}
		return err
	}
	return c.writeReport(ctx, o.out)
}

func (c *cli) measure(ctx context.Context, o experimentFlags, p *private, k *knative, objects *objectStore, store *experiment.Store, left []experiment.Point) (err error) {
	if len(left) == 0 {
		return nil
	}
	progress := c.newExperimentProgress(left)
	defer progress.close()
	host := &labHost{c: c, p: p, images: map[string]string{}}
	lab := experiment.NewLab(host, o.set, newLogger(c.err, p.d.cfg))
	if k != nil {
		lab.Knative = k
	}
	if objects != nil {
		n, nerr := c.newNodes(host, objects)
		if nerr != nil {
			return nerr
		}
		defer func() { err = errors.Join(err, n.close()) }()
		lab.Nodes = n
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		err = errors.Join(err, lab.Remove(ctx))
	}()
	return experiment.Run(ctx, lab, store, left, progress)
}

// labHost is the private daemon as experiments see it.
type labHost struct {
	c      *cli
	p      *private
	images map[string]string // of built-in functions
}

func (h *labHost) Client() *api.Client { return h.p.client }
func (h *labHost) VMM() string         { return h.p.d.program }

func (h *labHost) Image(function string) (image.Image, error) { return h.p.d.imageOf(function) }

func (h *labHost) Inputs() string {
	for _, s := range h.p.d.cfg.HostServices {
		if port, address, _ := strings.Cut(s, "="); port == strconv.Itoa(inputsPort) {
			return address
		}
	}
	return ""
}

func (h *labHost) Files(ctx context.Context, function string) ([]string, error) {
	return h.p.d.filesOf(ctx, function)
}

// image makes the image of a built-in function, once.
func (h *labHost) image(ctx context.Context, builtin string) (ref string, err error) {
	if h.images[builtin] == "" {
		h.images[builtin], err = h.c.localImage(ctx, "functions/"+builtin)
	}
	return h.images[builtin], err
}

// Recordings is named by what the recording depends on: the image's reference has a
// digest of its contents.
func (h *labHost) Recordings(ctx context.Context, builtin string) (string, error) {
	ref, err := h.image(ctx, builtin)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(ref + "\n" + h.p.version.VMM))
	return filepath.Join(h.p.d.cfg.DataDir, "recordings", builtin+"-"+hex.EncodeToString(sum[:6])), nil
}

func (h *labHost) Deploy(ctx context.Context, builtin string, f api.Function) (err error) {
	if f.Image, err = h.image(ctx, builtin); err != nil {
		return err
	}
	_, err = h.p.client.Deploy(ctx, f, nil)
	return err
}

func (h *labHost) Source(ctx context.Context, function string) (memory.Source, error) {
	list, err := h.p.client.Snapshots(ctx, function)
	if err != nil {
		return memory.Source{}, err
	}
	for _, s := range list {
		if !s.Usable {
			continue
		}
		dir, err := h.p.d.node.SnapshotDir(s.ID)
		if err != nil {
			return memory.Source{}, err
		}
		return h.c.snapshotSource(dir)
	}
	return memory.Source{}, fmt.Errorf("function %s has no usable snapshot", function)
}

func (c *cli) experimentReportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "report DIRECTORY", Short: "make figures and tables of raw samples",
		Long:    "Make figures, tables and the report of the raw samples in a directory of results. It can be done again at any time, anywhere.",
		Example: "  skep experiment report paper",
		Args:    nArgs(1, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.writeReport(cmd.Context(), args[0]) },
	}
}

func (c *cli) writeReport(ctx context.Context, dir string) error {
	d, err := experiment.Load(dir)
	if err != nil {
		return err
	}
	if err := experiment.WriteDatabase(ctx, dir, d); err != nil {
		return err
	}
	path, err := report.Write(dir, d)
	if err != nil {
		return err
	}
	c.say("%d samples: %s", len(d.Samples), path)
	return nil
}

func (c *cli) experimentCompareCmd() *cobra.Command {
	return &cobra.Command{
		Use: "compare A B", Short: "say what got faster between two runs, and whether it is noise",
		Long: `Compare two directories of results: for each function and variant that both have,
the medians, their ratio with a bootstrap interval, and the probability of such
samples if nothing had changed (Mann-Whitney).`,
		Example: `  skep experiment compare before after
  skep experiment compare before after --json | jq '.[] | select(.verdict == "slower")'`,
		Args: nArgs(2, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			a, err := experiment.Load(args[0])
			if err != nil {
				return err
			}
			b, err := experiment.Load(args[1])
			if err != nil {
				return err
			}
			rows := experiment.Compare(a, b)
			if c.json {
				return c.writeJSON(rows)
			}
			if len(rows) == 0 {
				return fmt.Errorf("%s and %s have no point in common: %w", args[0], args[1], os.ErrNotExist)
			}
			return table(c.out, experiment.CompareTable(rows))
		},
	}
}
