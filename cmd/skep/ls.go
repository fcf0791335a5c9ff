package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) lsCmd() *cobra.Command {
	var instances bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "list functions, or running instances",
		Example: `  skep ls
  skep ls --instances
  skep ls --json | jq -r '.[].name'`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if instances {
				list, err := client.Instances(cmd.Context(), "")
				if err != nil {
					return err
				}
				return c.printInstances(list)
			}
			list, err := client.Functions(cmd.Context())
			if err != nil {
				return err
			}
			return c.printFunctions(list)
		},
	}
	cmd.Flags().BoolVarP(&instances, "instances", "i", false, "list running instances instead of functions")
	return cmd
}

func (c *cli) printFunctions(list []api.FunctionStatus) error {
	if c.json {
		return c.writeJSON(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(c.err, "no functions yet: `skep deploy functions/hello` makes one")
		return nil
	}
	rows := [][]string{{"NAME", "IMAGE", "MEMORY", "INSTANCES", "SNAPSHOTS", "AGE", "URL"}}
	for _, f := range list {
		rows = append(rows, []string{
			f.Name, f.Image, strconv.Itoa(f.MemoryMiB) + " MiB", states(f.Instances), strconv.Itoa(f.Snapshots), ago(f.Created), dash(f.URL),
		})
	}
	return table(c.out, rows)
}

// states shows instance counts: "1 busy, 2 idle".
func states(counts map[api.InstanceState]int) string {
	var parts []string
	for _, s := range []api.InstanceState{api.InstanceBusy, api.InstanceIdle, api.InstanceStarting, api.InstanceDraining, api.InstanceStopped} {
		if n := counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return dash(strings.Join(parts, ", "))
}

func (c *cli) printInstances(list []api.Instance) error {
	if c.json {
		return c.writeJSON(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(c.err, "no instance is running")
		return nil
	}
	return table(c.out, instanceRows(list))
}

func instanceRows(list []api.Instance) [][]string {
	rows := [][]string{{"INSTANCE", "FUNCTION", "STATE", "START", "REQUESTS", "AGE", "PID", "VMM", "SNAPSHOT"}}
	for _, i := range list {
		rows = append(rows, []string{
			i.ID, i.Function, string(i.State), string(i.Start), strconv.FormatInt(i.Requests, 10), ago(i.Created), strconv.Itoa(i.PID), i.VMM, dash(i.Snapshot),
		})
	}
	return rows
}
