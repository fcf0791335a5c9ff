package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/load/trace"
)

func (c *cli) workloadCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "workload",
		Short: "traces of load: look at one, make one, or a small sample of a large one",
		Long: `Look at traces of load, make them, and make small samples of large ones.

A TRACE is one of these, as it was published and unpacked; files may be gzipped:
  Azure Functions 2019   the directory with invocations_per_function_md.anon.d01.csv …
  Azure Functions 2021   the file with a line for each invocation
  Huawei 2023            the directory with requests_minute/day_000.csv …
  skep's own, invitro's  a directory with invocations.csv, durations.csv, memory.csv
What is written has the last form, which is that of Azure's trace of 2019.`,
		Example: `  skep workload make --functions 50000 day/
  skep workload sample day/ -n 20 --from 480 --minutes 60 small/`,
	}
	onlyVerbs(cmd)
	cmd.AddCommand(c.workloadShowCmd(), c.workloadMakeCmd(), c.workloadSampleCmd())
	return cmd
}

func (c *cli) workloadShowCmd() *cobra.Command {
	var t traceFlags
	cmd := &cobra.Command{
		Use:     "show TRACE",
		Short:   "say what is in a trace",
		Example: `  skep workload show azure2019/ --day 2`,
		Args:    nArgs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			tr, err := t.read(args, c.say)
			if err != nil {
				return err
			}
			return c.describeTrace(tr)
		},
	}
	t.add(cmd.Flags())
	return cmd
}

func (c *cli) workloadMakeCmd() *cobra.Command {
	var t traceFlags
	cmd := &cobra.Command{
		Use:   "make DIR",
		Short: "make a trace with the statistics that were published of Azure's",
		Long: `Make a trace with the statistics that "Serverless in the Wild" (ATC'20)
published of Azure Functions: functions in an application, triggers, calls a day
(45% of functions at most one an hour, 81% at most one a minute, the busiest
18.6% more than 99% of all), the wave of a day, periodic timers, bursts,
log-normal durations, Burr memory. DIR must not hold a trace yet.`,
		Example: `  skep workload make --functions 50000 day/
  skep workload make --functions 200 --minutes 60 hour/`,
		Args: nArgs(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			tr, err := t.read(nil, c.say)
			if err != nil {
				return err
			}
			return c.writeTrace(tr, args[0])
		},
	}
	t.add(cmd.Flags())
	return cmd
}

func (c *cli) workloadSampleCmd() *cobra.Command {
	var t traceFlags
	var n int
	cmd := &cobra.Command{
		Use:   "sample TRACE DIR",
		Short: "make a small trace that stands for a large one",
		Long: `Choose functions of a trace whose calls, durations and memory are distributed
like those of all: one of each stratum of the range of calls, of 200 random
choices the one that is nearest to the whole by Wasserstein's distance of the
logarithms. DIR must not hold a trace yet.`,
		Example: `  skep workload sample azure2019/ -n 20 --from 480 --minutes 60 small/`,
		Args:    nArgs(2, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			tr, err := t.read(args[:1], c.say)
			if err != nil {
				return err
			}
			sample, distance, err := tr.Sample(n, t.seed)
			if err != nil {
				return err
			}
			c.say("the sample is at a distance of %.3f orders of magnitude from the whole", distance)
			return c.writeTrace(sample, args[1])
		},
	}
	cmd.Flags().IntVarP(&n, "size", "n", 50, "functions in the sample")
	t.add(cmd.Flags())
	return cmd
}

// writeTrace writes a trace to a directory that has none, and shows it.
func (c *cli) writeTrace(tr *trace.Trace, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if old, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(old) > 0 {
		return fmt.Errorf("%s is not empty: choose another directory", dir)
	}
	return errors.Join(tr.Write(dir), c.describeTrace(tr))
}

// describeTrace says what is in a trace.
func (c *cli) describeTrace(tr *trace.Trace) error {
	type quantiles struct {
		P1  float64 `json:"p1"`
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	}
	of := func(f func(*trace.Function) float64) quantiles {
		v := make([]float64, len(tr.Functions))
		for i := range tr.Functions {
			v[i] = f(&tr.Functions[i])
		}
		slices.Sort(v)
		at := func(p int) float64 { return v[(len(v)-1)*p/100] }
		return quantiles{at(1), at(50), at(99), at(100)}
	}
	if len(tr.Functions) == 0 {
		return errors.New("the trace has no function")
	}
	calls := of(func(f *trace.Function) float64 { return float64(f.Calls) })
	took := of(func(f *trace.Function) float64 { return f.Duration.Median() })
	mib := of(func(f *trace.Function) float64 { return f.MemoryMiB })
	if c.json {
		return c.writeJSON(map[string]any{"functions": len(tr.Functions), "invocations": tr.Calls(), "minutes": tr.Minutes(),
			"calls_of_functions": calls, "median_seconds_of_functions": took, "memory_mib_of_functions": mib, "bytes": tr.Bytes()})
	}
	fmt.Fprintf(c.out, "%d functions · %d invocations · %v · %s in memory\n\n", len(tr.Functions), tr.Calls(), tr.Length(), size(tr.Bytes()))
	row := func(name string, q quantiles) []string {
		return []string{name, fmt.Sprintf("%.3g", q.P1), fmt.Sprintf("%.3g", q.P50), fmt.Sprintf("%.3g", q.P99), fmt.Sprintf("%.3g", q.Max)}
	}
	return table(c.out, [][]string{{"OF FUNCTIONS", "p1", "p50", "p99", "MAX"}, row("invocations", calls), row("median duration s", took), row("memory MiB", mib)})
}
