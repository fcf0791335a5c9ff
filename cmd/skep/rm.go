package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (c *cli) rmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"remove"},
		Short:             "drain and delete functions, their snapshots and logs",
		Example:           `  skep rm hello`,
		Args:              nArgs(1, 1000),
		ValidArgsFunction: c.complete(1000, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			var errs []error
			for _, name := range args {
				if err := client.RemoveFunction(cmd.Context(), name); err != nil {
					errs = append(errs, err)
					continue
				}
				if !c.json {
					fmt.Fprintf(c.out, "removed %s\n", name)
				}
			}
			return errors.Join(errs...)
		},
	}
}
