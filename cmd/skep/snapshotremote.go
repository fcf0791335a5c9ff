package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) snapshotPushCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "push ID...",
		Short: "store snapshots in the object store, for other nodes",
		Long: `Store snapshots, with their root disks, in the object store that store_bucket
names. Nodes with the same bucket start from those that fit them. With
store_push, the default, the daemon does it by itself whenever it has made one.

Only what the store does not have yet is uploaded. Whoever looks finds the whole
snapshot or none.`,
		Example:           `  skep snapshot push ID`,
		Args:              nArgs(1, 1000),
		ValidArgsFunction: c.complete(1000, snapshotIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []api.PushedSnapshot
			err := c.eachSnapshot(args, "pushed", func(client *api.Client, id string) error {
				p, err := client.PushSnapshot(cmd.Context(), id)
				if err == nil {
					all = append(all, p)
				}
				return err
			})
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(all)
			}
			for _, p := range all {
				fmt.Fprintf(c.err, "%s: of %s, %s were new: %s written in %v\n", p.ID, size(p.Content), size(p.New), size(p.Written), p.Took)
			}
			return nil
		},
	}
}

func (c *cli) snapshotPullCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "pull FUNCTION [ID]",
		Short: "bring a snapshot of the object store to this node",
		Long: `Bring a snapshot of a function from the object store to this node: the newest
that it could start from here, or the one named, whether or not its function is
deployed. A daemon does it by itself where it would have to boot otherwise, and
starts instances before all of it is here; this waits for all of it. How far one
is that instances start from, ` + "`skep snapshot ls --remote`" + ` shows under HERE.`,
		Example: `  skep snapshot pull hello
  skep snapshot pull hello ID`,
		Args:              nArgs(1, 2),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			r := api.PullRequest{Function: args[0]}
			if len(args) > 1 {
				r.ID = args[1]
			}
			s, err := client.PullSnapshot(cmd.Context(), r)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(s)
			}
			_, err = fmt.Fprintln(c.out, s.ID)
			return err
		},
	}
}

func (c *cli) listRemote(ctx context.Context, client *api.Client, function string) error {
	list, err := client.RemoteSnapshots(ctx, function)
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(c.err, "no snapshots in the object store")
		return nil
	}
	rows := [][]string{{"SNAPSHOT", "FUNCTION", "PUSHED", "REASON", "MEMORY", "STORED", "VMM", "HERE", "USABLE"}}
	for _, s := range list {
		usable, here := "yes", "no"
		if !s.Usable {
			usable = "no: " + s.Problem
		}
		if s.Here {
			here = "yes"
		} else if a := s.Arriving; a != nil {
			here = fmt.Sprintf("%d%%", 100*a.Done/max(a.Total, 1))
		}
		rows = append(rows, []string{s.ID, s.Function, ago(s.Pushed), s.Reason, strconv.Itoa(s.MemoryMiB) + " MiB", size(s.Stored), s.VMM, here, usable})
	}
	return table(c.out, rows)
}

func (c *cli) removeRemote(cmd *cobra.Command, args []string) error {
	for _, a := range args {
		if function, id, ok := strings.Cut(a, "/"); !ok || function == "" || id == "" {
			return usagef(cmd, "%q is not FUNCTION/ID, as skep snapshot ls --remote has them", a)
		}
	}
	return c.eachSnapshot(args, "removed", func(client *api.Client, name string) error {
		function, id, _ := strings.Cut(name, "/")
		return client.RemoveRemoteSnapshot(cmd.Context(), function, id)
	})
}
