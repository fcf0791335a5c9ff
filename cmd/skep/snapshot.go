package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snap"},
		Short:   "make, list, check, share and delete snapshots",
		Example: `  skep snapshot create hello
  skep snapshot ls hello
  skep snapshot inspect ID`,
	}
	onlyVerbs(cmd)
	cmd.AddCommand(c.snapshotCreateCmd(), c.snapshotLsCmd(), c.snapshotInspectCmd(), c.snapshotVerifyCmd(), c.snapshotRmCmd(), c.snapshotPushCmd(), c.snapshotPullCmd())
	return cmd
}

func (c *cli) snapshotCreateCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "create NAME",
		Short:             "boot an instance of a function and snapshot it, now",
		Example:           `  skep snapshot create hello`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			s, err := client.CreateSnapshot(cmd.Context(), args[0])
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

func (c *cli) snapshotLsCmd() *cobra.Command {
	var remote bool
	cmd := &cobra.Command{
		Use:     "ls [NAME]",
		Aliases: []string{"list"},
		Short:   "list snapshots, newest first",
		Example: `  skep snapshot ls
  skep snapshot ls hello --json
  skep snapshot ls --remote`,
		Args:              nArgs(0, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			if remote {
				return c.listRemote(cmd.Context(), client, name)
			}
			list, err := client.Snapshots(cmd.Context(), name)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(list)
			}
			if len(list) == 0 {
				fmt.Fprintln(c.err, "no snapshots")
				return nil
			}
			return table(c.out, snapshotRows(list))
		},
	}
	cmd.Flags().BoolVar(&remote, "remote", false, "list those in the object store (store_bucket) instead, whichever node made them")
	return cmd
}

func snapshotRows(list []api.Snapshot) [][]string {
	rows := [][]string{{"SNAPSHOT", "FUNCTION", "AGE", "REASON", "MEMORY", "DISK", "VMM", "USABLE"}}
	for _, s := range list {
		usable := "yes"
		if !s.Usable {
			usable = "no: " + s.Problem
		}
		if s.Rollback {
			usable = "after a rollback"
		}
		rows = append(rows, []string{
			s.ID, s.Function, ago(s.Created), s.Reason, strconv.Itoa(s.MemoryMiB) + " MiB", size(s.DiskBytes), s.VMM, usable,
		})
	}
	return rows
}

func (c *cli) snapshotVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "verify ID...",
		Short:             "read snapshots whole and compare their digests",
		Example:           `  skep snapshot verify ID`,
		Args:              nArgs(1, 1000),
		ValidArgsFunction: c.complete(1000, snapshotIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.eachSnapshot(args, "is whole", func(client *api.Client, id string) error {
				return client.VerifySnapshot(cmd.Context(), id)
			})
		},
	}
}

func (c *cli) snapshotRmCmd() *cobra.Command {
	var remote bool
	cmd := &cobra.Command{
		Use:     "rm ID...",
		Aliases: []string{"remove"},
		Short:   "delete snapshots; the function boots, or uses an older one",
		Long: `Delete snapshots of this node, or, with --remote, take some out of the object
store. Their chunks go with ` + "`skep store gc`" + `, if no other snapshot has them.`,
		Example: `  skep snapshot rm ID
  skep snapshot rm --remote hello/ID`,
		Args:              nArgs(1, 1000),
		ValidArgsFunction: c.complete(1000, snapshotIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remote {
				return c.removeRemote(cmd, args)
			}
			return c.eachSnapshot(args, "removed", func(client *api.Client, id string) error {
				return client.RemoveSnapshot(cmd.Context(), id)
			})
		},
	}
	cmd.Flags().BoolVar(&remote, "remote", false, "from the object store, each as FUNCTION/ID")
	return cmd
}

// eachSnapshot does something with every id and says so, or joins what failed.
func (c *cli) eachSnapshot(ids []string, done string, do func(*api.Client, string) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	var errs []error
	for _, id := range ids {
		if err := do(client, id); err != nil {
			errs = append(errs, err)
		} else if !c.json {
			fmt.Fprintf(c.out, "%s %s\n", id, done)
		}
	}
	return errors.Join(errs...)
}
