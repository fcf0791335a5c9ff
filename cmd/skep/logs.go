package main

import (
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) logsCmd() *cobra.Command {
	var q api.LogQuery
	var since string
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "show what a function wrote to stdout and stderr",
		Long: `Show what a function wrote to stdout and stderr. Before each line stand its
time, instance and stream, and the invocation that the instance was given last,
where concurrency is 1; "-" where that is not known. A function that serves
several at once can write the X-Request-Id or Skep-Invocation that it gets.`,
		Example: `  skep logs hello
  skep logs hello -f --tail 10
  skep logs hello --since 15m
  skep logs hello --invocation 4f1d2c3b5a697887`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.Tail < 0 {
				return usagef(cmd, "--tail is %d: want 0 or more", q.Tail)
			}
			var err error
			if q.Since, err = parseTime("since", since); err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			q.Function = args[0]
			err = client.Logs(cmd.Context(), q, c.out)
			if q.Follow && cmd.Context().Err() != nil {
				return nil // interrupting is how one ends it
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on as more is written, until interrupted")
	f.IntVarP(&q.Tail, "tail", "n", 0, "only the last `N` lines (0: all that is kept)")
	f.StringVar(&since, "since", "", "only what is not older than a `DURATION` (15m), or since a time (2026-01-31T12:00:00Z)")
	f.StringVar(&q.Invocation, "invocation", "", "only of this invocation (concurrency 1)")
	f.StringVar(&q.Instance, "instance", "", "only of this instance")
	return cmd
}
