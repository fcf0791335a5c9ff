package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) inspectCmd() *cobra.Command {
	var env bool
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "show a function: settings, instances, snapshots, last invocations",
		Example: `  skep inspect hello
  skep inspect hello --json | jq '.recent[0].phases'`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			show := client.Function
			if env {
				show = client.FunctionEnv
			}
			d, err := show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(d)
			}
			return c.printDetail(d)
		},
	}
	cmd.Flags().BoolVar(&env, "show-env", false, "show the values of the environment, which may be secret")
	return cmd
}

func (c *cli) printDetail(d api.FunctionDetail) error {
	if err := table(c.out, settingRows(d)); err != nil {
		return err
	}
	if len(d.InstanceList) > 0 {
		fmt.Fprintln(c.out)
		if err := table(c.out, instanceRows(d.InstanceList)); err != nil {
			return err
		}
	}
	if len(d.SnapshotList) > 0 {
		fmt.Fprintln(c.out)
		if err := table(c.out, snapshotRows(d.SnapshotList)); err != nil {
			return err
		}
	}
	if len(d.Recent) > 0 {
		fmt.Fprintln(c.out)
		return table(c.out, invocationRows(d.Recent))
	}
	return nil
}

func settingRows(d api.FunctionDetail) [][]string {
	f := d.Function.WithDefaults()
	rows := [][]string{
		{"name", f.Name},
		{"url", dash(d.URL)},
		{"image", f.Image},
		{"digest", dash(f.ImageDigest)},
		{"revision", strconv.Itoa(f.Revision)},
		{"memory", fmt.Sprintf("%d MiB, of which the root may be written %d MiB", f.MemoryMiB, f.DiskMiB)},
		{"vcpus", strconv.Itoa(f.VCPUs)},
		{"port", strconv.Itoa(f.Port)},
		{"ready when", readiness(f)},
		{"timeouts", timeouts(f)},
		{"instances", fmt.Sprintf("at most %d, %d request(s) at once in each, kept %v idle", f.MaxInstances, f.Concurrency, f.KeepAlive)},
		{"queue", fmt.Sprintf("%d requests may wait", f.QueueLimit)},
		{"snapshot", snapshotRule(f.Snapshot)},
		{"memory policy", orDefault(f.MemoryPolicy)},
		{"egress", f.Egress},
	}
	if f.Scaling != "" || f.MinInstances > 0 {
		rows = append(rows, []string{"scaling", fmt.Sprintf("%s, at least %d instances", orDefault(f.Scaling), f.MinInstances)})
	}
	if f.TargetUtilization > 0 {
		rows = append(rows, []string{"target", fmt.Sprintf("others start beyond %g of what is at once in each", f.TargetUtilization)})
	}
	if len(f.Args) > 0 {
		rows = append(rows, []string{"args", strings.Join(f.Args, " ")})
	}
	for _, k := range slices.Sorted(maps.Keys(f.Env)) {
		rows = append(rows, []string{"env", k + "=" + f.Env[k]})
	}
	if f.CloneHook != "" {
		rows = append(rows, []string{"clone hook", f.CloneHook})
	}
	if r := f.Rehearsal; !r.IsZero() {
		rows = append(rows, []string{"rehearsal", r.String()})
	}
	return append(rows, []string{"deployed", f.Created.Format(time.RFC3339)})
}

func orDefault(policy string) string {
	if policy == "" {
		return "the daemon's default"
	}
	return policy
}

func readiness(f api.Function) string {
	if f.ReadyPath == "" {
		return fmt.Sprintf("port %d accepts connections (within %v)", f.Port, f.ReadyTimeout)
	}
	return fmt.Sprintf("GET %s answers 2xx (within %v)", f.ReadyPath, f.ReadyTimeout)
}

func timeouts(f api.Function) string {
	l := f.Limits()
	stream := "as long as they are used"
	if l.Stream > 0 {
		stream = l.Stream.String()
	}
	return fmt.Sprintf("%v in all: in the queue %v, until the response begins %v, idle %v; streams %s", l.Total, l.Queue, l.Response, l.Idle, stream)
}

func snapshotRule(r api.SnapshotRule) string {
	switch {
	case r.Off:
		return "only when asked for"
	case r.AfterInvocations > 0:
		return fmt.Sprintf("after %d invocations", r.AfterInvocations)
	}
	return "as soon as it is ready"
}

func invocationRows(list []api.Invocation) [][]string {
	rows := [][]string{{"INVOCATION", "AGE", "START", "POLICY", "STATUS", "TOTAL ms", "FAULTS", "ERROR"}}
	for _, i := range list {
		policy, faults := "-", "-"
		if i.Memory != nil {
			policy, faults = dash(i.Memory.Policy), strconv.FormatInt(i.Memory.Faults, 10)
		}
		rows = append(rows, []string{
			i.ID, ago(i.Time), dash(string(i.Start)), policy, strconv.Itoa(i.Status), millis(i.Phases.Total), faults, dash(i.Error),
		})
	}
	return rows
}
