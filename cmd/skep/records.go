package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/shim/ledger"
)

func (c *cli) recordsCmd() *cobra.Command {
	var q api.InvocationQuery
	var since, until, failure, start string
	var containers bool
	cmd := &cobra.Command{
		Use:   "records [FUNCTION]",
		Short: "list records of invocations: which were slow, which failed, and why",
		Long: `List records of invocations, newest first. Each invocation leaves one, with its
phases; keep_records of the daemon says how many are kept. All that is named
must fit. With --json each line is a record as it is stored.

With --containers they are those of starts of containers under containerd and
Kubernetes: FUNCTION is the revision that the container is of (Knative's, a
ReplicaSet, or the pod or container itself), and STATUS says how it has ended. No
daemon is needed for them, but root. They are in skep.db of the shims' data
directory, as the daemon's are in its.`,
		Example: `  skep records shop
  skep records --failure any --since 1h
  skep records shop --start restore --slower-than 500ms -n 20
  skep records --status 5xx --json | jq -r .error
  skep records --id 4f1d2c3b5a697887 --json | jq .phases
  skep records --containers hello-00001`,
		Args:              nArgs(0, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Since, err = parseTime("since", since); err != nil {
				return err
			}
			if q.Until, err = parseTime("until", until); err != nil {
				return err
			}
			if len(args) > 0 {
				q.Function = args[0]
			}
			q.Failure, q.Start = api.Failure(failure), api.StartKind(start)
			if err := q.Validate(); err != nil {
				return &usageError{msg: err.Error()}
			}
			if q.Limit < 1 {
				return usagef(cmd, "--limit is %d: want 1 or more", q.Limit)
			}
			records := c.daemonRecords
			if containers {
				records = c.containerRecords
			}
			list, err := records(cmd.Context(), q)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeLines(list)
			}
			return table(c.out, recordRows(list))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&since, "since", "", "that arrived at most a `DURATION` ago (15m), or since a time (2026-01-31T12:00:00Z)")
	f.StringVar(&until, "until", "", "that arrived before then")
	f.StringVar(&q.Status, "status", "", "with that HTTP `STATUS`: 504, or 5xx for a class")
	f.StringVar(&failure, "failure", "", "whose doing it is that it failed: any, client, queue, timeout, function or platform")
	f.StringVar(&start, "start", "", "how its instance started: boot, restore or warm")
	f.DurationVar(&q.Slower, "slower-than", 0, "that took longer in all")
	f.StringVar(&q.Instance, "instance", "", "that this instance answered")
	f.StringVar(&q.ID, "id", "", "with this id")
	f.BoolVar(&containers, "containers", false, "of containers under this host's containerd, not of the daemon's functions")
	f.IntVarP(&q.Limit, "limit", "n", 100, "the newest so many")
	return cmd
}

func (c *cli) daemonRecords(ctx context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Invocations(ctx, q)
}

// containerRecords are those of the host's containers; nil where there have not been any.
func (c *cli) containerRecords(ctx context.Context, q api.InvocationQuery) ([]api.Invocation, error) {
	cfg, err := containerd.Host{}.Settings(c.environ)
	if err != nil {
		return nil, err
	}
	if !ledger.Exists(cfg.DataDir) {
		return nil, nil
	}
	l, err := ledger.Open(ctx, cfg.DataDir, cfg.KeepRecords)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.Invocations(ctx, q)
}

// recordStatus is the HTTP status of an invocation, or how a container has ended.
func recordStatus(i api.Invocation) string {
	switch c := i.Container; {
	case c == nil:
		return strconv.Itoa(i.Status)
	case c.Exit == nil:
		return "-"
	case c.Exit.OutOfMemory:
		return fmt.Sprint(c.Exit.Code, " OOM")
	default:
		return strconv.Itoa(c.Exit.Code)
	}
}

func recordRows(list []api.Invocation) [][]string {
	rows := [][]string{{"INVOCATION", "FUNCTION", "AGE", "START", "STATUS", "FAILURE", "TOTAL ms", "QUEUE ms", "PROCESS ms", "INSTANCE", "ERROR"}}
	for _, i := range list {
		rows = append(rows, []string{
			i.ID, i.Function, ago(i.Time), dash(string(i.Start)), recordStatus(i), dash(string(i.Failure)),
			millis(i.Phases.Total), millis(i.Phases.Queue), millis(i.Phases.Process), dash(i.Instance), dash(printable(i.Error)),
		})
	}
	return rows
}

// parseTime reads a time, or how long ago it was; "" is the zero time.
func parseTime(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, &usageError{msg: fmt.Sprintf("--%s is %q: want a duration such as 15m, or a time such as 2026-01-31T12:00:00Z", flag, s)}
	}
	return t, nil
}
