package main

import (
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) logsCmd() *cobra.Command {
	var q api.LogQuery
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "show what a function wrote to stdout and stderr",
		Example: `  skep logs hello
  skep logs hello -f --tail 10`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.Tail < 0 {
				return usagef(cmd, "--tail is %d: want 0 or more", q.Tail)
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
	f.StringVar(&q.Instance, "instance", "", "only of this instance")
	return cmd
}
