package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) storeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "look after the object store that nodes share snapshots through",
		Long: `Look after the object store that store_bucket names. Snapshots come into it by
` + "`skep snapshot push`" + `, or by themselves when they are made (store_push), and go
by ` + "`skep snapshot rm --remote`" + ` or ` + "`skep store gc --keep`" + `. A node keeps what it
fetched last of the store on its disk, up to store_cache_mib.`,
		Example: `  skep store usage
  skep store verify --quick
  skep store gc --dry-run --keep 2`,
	}
	onlyVerbs(cmd)
	cmd.AddCommand(c.storeUsageCmd(), c.storeVerifyCmd(), c.storeGCCmd())
	return cmd
}

func (c *cli) storeUsageCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "usage [FUNCTION]",
		Short: "say what the snapshots in the object store take",
		Long: `Say what the snapshots in the object store take. LENGTH is that of their files,
CONTENT what of them is not zeros, STORED what their chunks take, OWN what of
that no other snapshot has.`,
		Example:           `  skep store usage hello`,
		Args:              nArgs(0, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			u, err := client.StoreUsage(cmd.Context(), optional(args))
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(u)
			}
			rows := [][]string{{"SNAPSHOT", "FUNCTION", "LENGTH", "CONTENT", "STORED", "OWN"}}
			for _, s := range u.Snapshots {
				rows = append(rows, []string{s.ID, s.Function, size(s.Length), size(s.Content), size(s.Stored), size(s.Own)})
			}
			if err := table(c.out, rows); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "\n%s in %d packs, %s of it needed; %d packs condemned, %d pushes under way\n",
				size(u.PackBytes), u.Packs, size(u.Needed), u.Condemned, u.Pushes)
			return err
		},
	}
}

func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (c *cli) storeVerifyCmd() *cobra.Command {
	var quick bool
	cmd := &cobra.Command{
		Use:   "verify [FUNCTION]",
		Short: "check that the snapshots in the object store are whole",
		Long: `Check that the snapshots in the object store, or those of a function, are whole:
read every chunk that one of them has, each once, and compare its digest. It
exits with an error if one is not.`,
		Example: `  skep store verify
  skep store verify hello --quick`,
		Args:              nArgs(0, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			v, err := client.VerifyStore(cmd.Context(), optional(args), quick)
			if err != nil {
				return err
			}
			if c.json {
				if err := c.writeJSON(v); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(c.out, "%d snapshots, %d chunks, %s\n", v.Snapshots, v.Chunks, size(v.Bytes))
				for _, p := range v.Problems {
					fmt.Fprintf(c.out, "%s: %s\n", p.Snapshot, p.Error)
				}
			}
			if n := len(v.Problems); n > 0 {
				return fmt.Errorf("%d snapshots in the object store are not whole: remove them with `skep snapshot rm --remote`, and push them again where they are", n)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "read no content: only see whether all of it is there")
	return cmd
}

func (c *cli) storeGCCmd() *cobra.Command {
	r := api.CollectRequest{Grace: api.Duration(time.Hour)}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "delete from the object store what no snapshot needs",
		Long: `Delete from the object store what no snapshot needs any more. Others may push,
start and collect meanwhile. What is not needed is condemned first, and deleted
by the next run once it has been so for the grace: as long as somebody may still
read a snapshot that was removed.`,
		Example: `  skep store gc --dry-run
  skep store gc --keep 2
  skep store gc --grace 0s`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Keep < 0 || r.Grace < 0 {
				return usagef(cmd, "--keep and --grace: want no less than zero")
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			o, err := client.CollectStore(cmd.Context(), r)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(o)
			}
			would := ""
			if r.DryRun {
				would = "would be "
			}
			for _, name := range o.Removed {
				fmt.Fprintf(c.out, "%s %sremoved\n", name, would)
			}
			return table(c.out, [][]string{
				{"PACKS", strconv.Itoa(o.Packs), size(o.Bytes)},
				{"DELETED", strconv.Itoa(o.Deleted), size(o.Freed)},
				{"CONDEMNED NOW", strconv.Itoa(o.Condemned), ""},
				{"CONDEMNED, WAITING", strconv.Itoa(o.Waiting), ""},
				{"PUSHES UNDER WAY", strconv.Itoa(o.Pushes), ""},
				{"DEAD PUSHES", strconv.Itoa(o.Dead), ""},
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.DryRun, "dry-run", false, "only say what would be done")
	f.IntVar(&r.Keep, "keep", 0, "remove snapshots first of which there are so many newer ones of the function that fit the same (0: none)")
	f.DurationVar((*time.Duration)(&r.Grace), "grace", time.Hour, "how long packs stay condemned before they are deleted")
	return cmd
}
