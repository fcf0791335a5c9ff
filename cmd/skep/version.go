package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// version is set by the linker in releases; else it is that of the module.
var version = "dev"

// buildVersion says what this binary is.
func buildVersion() api.Version {
	v := api.Version{Version: version, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		// Where `go install` had no version it writes "(devel)".
		if m := info.Main.Version; version == "dev" && m != "" && m != "(devel)" {
			v.Version = m
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return v
}

func (c *cli) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "show the versions of this program and of the daemon",
		Example: `  skep version --json`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := struct {
				Client api.Version  `json:"client"`
				Daemon *api.Version `json:"daemon,omitempty"`
			}{Client: buildVersion()}
			if d, err := c.daemonVersion(cmd.Context()); err == nil {
				out.Daemon = &d
			}
			if c.json {
				return c.writeJSON(out)
			}
			fmt.Fprintf(c.out, "skep %s %s %s/%s %s\n", out.Client.Version, dash(out.Client.Commit), runtime.GOOS, runtime.GOARCH, out.Client.Go)
			if d := out.Daemon; d != nil {
				fmt.Fprintf(c.out, "daemon %s %s, %s, pid %d, up %s, gateway http://%s\n", d.Version, dash(d.Commit), d.VMM, d.PID, ago(d.Started), d.Gateway)
			} else {
				fmt.Fprintln(c.out, "daemon: none answers")
			}
			return nil
		},
	}
}

func (c *cli) daemonVersion(ctx context.Context) (api.Version, error) {
	client, err := c.client()
	if err != nil {
		return api.Version{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return client.Version(ctx)
}
