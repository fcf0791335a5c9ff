package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// completeTimeout bounds how long a shell waits for names.
const completeTimeout = time.Second

// complete lets the shell complete a verb's arguments, at most max of them,
// with names that the daemon knows.
func (c *cli) complete(limit int, names func(context.Context, *api.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		all, err := names(ctx, client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		fit := slices.DeleteFunc(all, func(n string) bool { return !strings.HasPrefix(n, begun) || slices.Contains(args, n) })
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

func functionNames(ctx context.Context, client *api.Client) ([]string, error) {
	list, err := client.Functions(ctx)
	names := make([]string, len(list))
	for i, f := range list {
		names[i] = f.Name
	}
	return names, err
}

func snapshotIDs(ctx context.Context, client *api.Client) ([]string, error) {
	list, err := client.Snapshots(ctx, "")
	ids := make([]string, len(list))
	for i, s := range list {
		ids[i] = s.ID
	}
	return ids, err
}
