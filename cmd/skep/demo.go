package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// Runs of each kind in a demonstration: enough to see, few enough to wait for.
const (
	demoRestores = 3
	demoWarm     = 5
)

func (c *cli) demoCmd() *cobra.Command {
	var function string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "see a function boot, be snapshotted, and start from the snapshot",
		Long: `See a function boot, be snapshotted, and start from its snapshot under every
memory policy, with a table of where the time went. The demonstration runs a
private daemon of its own, touches nothing of one that runs, and removes what it
made; images stay in a cache, so that the second time is quicker.`,
		Example: `  skep demo
  skep demo --function hello-python
  skep demo --json > samples.json`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.demo(cmd.Context(), function) },
	}
	cmd.Flags().StringVar(&function, "function", "hello", "which of the functions that come with skep")
	c.keyFlags(cmd.Flags(), "vmm", "accel", "qemu", "kernel", "kernel_modules", "kernel_dir", "data_dir", "log_level")
	return cmd
}

func (c *cli) demo(ctx context.Context, function string) (err error) {
	p, err := c.startPrivate(ctx, "demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	c.say("skep %s on %s", p.version.Version, p.version.VMM)
	m, remove, err := c.deployPrivate(ctx, p, function, api.Function{Name: "demo", KeepAlive: api.Duration(time.Second)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	m.cold = coldFiles
	samples, err := c.demoRuns(ctx, m, p.version.Policies)
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(samples)
	}
	fmt.Fprintln(c.out)
	if err := table(c.out, phaseTable(samples, false)); err != nil {
		return err
	}
	fmt.Fprint(c.out, demoEnd)
	return nil
}

const demoEnd = `
Medians, in milliseconds; files were dropped from the page cache before each
start. boot: a kernel from nothing. restore: from the snapshot, its memory
filled by the named policy; the one without a name came first, and recorded
which pages the function needs. warm: an instance that was there.

Try next:
  skep up                              a daemon to keep; then, in another terminal:
  skep deploy functions/hello
  skep invoke hello -v --start restore
  curl http://hello.localhost:7080/
  skep bench start                     the same measured properly, raw samples kept
`

// say tells a person what happens, on stderr; scripts do not want to know.
func (c *cli) say(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

// demoRuns boots once, restores once to learn the working set, then restores
// and calls warm a few times in turn.
func (c *cli) demoRuns(ctx context.Context, m *measurement, policies []string) ([]sample, error) {
	plan := []variant{{start: api.StartBoot}, {start: api.StartRestore}}
	for range demoRestores {
		for _, p := range policies {
			plan = append(plan, variant{api.StartRestore, p})
		}
	}
	for range demoWarm {
		plan = append(plan, variant{start: api.StartWarm})
	}
	runs := map[variant]int{}
	var samples []sample
	for _, v := range plan {
		s, err := m.one(ctx, runs[v], v)
		if err != nil {
			return nil, err
		}
		runs[v]++
		samples = append(samples, s)
		c.say("  %-18s %8s ms", v, millis(s.Record.Phases.Total))
	}
	return samples, nil
}
