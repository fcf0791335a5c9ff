package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) imageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "list root disks, and remove those that nothing needs",
		Example: `  skep image ls
  skep image prune`,
	}
	onlyVerbs(cmd)
	cmd.AddCommand(c.imageLsCmd(), c.imagePruneCmd())
	return cmd
}

func (c *cli) imageLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "list the root disks made of images, and who needs them",
		Example: `  skep image ls --json`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			all, err := client.Images(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(all)
			}
			rows := [][]string{{"IMAGE", "SIZE", "FUNCTIONS", "SNAPSHOTS", "PROBLEM"}}
			for _, i := range all {
				rows = append(rows, []string{short(i.Digest), size(i.DiskBytes), dash(strings.Join(i.Functions, ",")), strconv.Itoa(len(i.Snapshots)), dash(i.Problem)})
			}
			return table(c.out, rows)
		},
	}
}

func (c *cli) imagePruneCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "remove the root disks that no function and no snapshot needs",
		Long: `Remove the root disks that no function, no kept revision of one and no snapshot
needs. The daemon does so by itself: keep_images of its settings after their last use,
and sooner where all root disks take more than image_budget_mib.`,
		Example: `  skep image prune`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			removed, err := client.PruneImages(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(removed)
			}
			return c.printPruned(removed)
		},
	}
}

func (c *cli) printPruned(removed []api.Image) error {
	total := int64(0)
	for _, i := range removed {
		total += i.DiskBytes
		fmt.Fprintf(c.out, "removed %s, %s\n", short(i.Digest), size(i.DiskBytes))
	}
	c.say("%d images removed, %s", len(removed), size(total))
	return nil
}
