package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) revisionsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "revisions NAME",
		Short: "list the versions that are kept of a function",
		Long: `List the versions that are kept of a function, newest first: each deploy,
set and rollback makes one. keep_revisions of the daemon says how many are kept,
with their images. A rollback to one with a snapshot serves at once; snapshots
are kept of what is in force and of what was before it.`,
		Example: `  skep revisions shop
  skep revisions shop --json | jq '.[1].function'`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Revisions(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(list)
			}
			return table(c.out, revisionRows(list))
		},
	}
}

func revisionRows(list []api.Revision) [][]string {
	rows := [][]string{{"REVISION", "AGE", "CHANGE", "IMAGE", "DIGEST", "SNAPSHOTS", "IN FORCE"}}
	for _, r := range list {
		in := ""
		if r.Current {
			in = "yes"
		}
		rows = append(rows, []string{strconv.Itoa(r.Number), ago(r.Created), r.Change, r.Image, short(r.Digest), strconv.Itoa(r.Snapshots), in})
	}
	return rows
}

func (c *cli) rollbackCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback NAME [REVISION]",
		Short: "put an earlier version of a function into force again",
		Long: `Put an earlier revision of a function into force again, with all its settings
and its image, as a new revision; without a number the one before, so that a
second rollback takes back the first. It serves at once where a snapshot of it
is kept, and is booted and snapshotted first where none is.`,
		Example: `  skep rollback shop
  skep rollback shop 4`,
		Args:              nArgs(1, 2),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision := 0
			if len(args) > 1 {
				var err error
				if revision, err = strconv.Atoi(args[1]); err != nil || revision < 1 {
					return usagef(cmd, "revision %q: want a number that `skep revisions` shows", args[1])
				}
			}
			return c.changeFunction(cmd.Context(), func(ctx context.Context, client *api.Client, progress func(api.DeployEvent)) (api.Function, error) {
				return client.Rollback(ctx, args[0], revision, progress)
			})
		},
	}
}
