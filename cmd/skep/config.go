package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
)

func (c *cli) configCmd() *cobra.Command {
	var file bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "show every setting, its value and where that came from",
		Long: `Show every setting, its value and where that came from.

A setting is looked for on the command line (--data-dir), in the environment
(SKEP_DATA_DIR), in the configuration file (data_dir = "/srv/skep", TOML;
--config, SKEP_CONFIG or ` + config.DefaultFile + `), and has a default
otherwise. Keys that do not exist are refused.`,
		Example: `  skep config
  skep config --json | jq .listen.value
  SKEP_VMM=qemu skep config
  skep config --listen 0.0.0.0:80 --file | sudo tee ` + config.DefaultFile,
		Args: nArgs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			if file {
				_, err := c.out.Write(r.Text())
				return err
			}
			return c.printConfig(r)
		},
	}
	cmd.Flags().BoolVar(&file, "file", false, "write it as a configuration file, with what each setting means; defaults are comments")
	c.allKeyFlags(cmd)
	return cmd
}

func (c *cli) printConfig(r config.Result) error {
	type setting struct {
		Value any    `json:"value"`
		From  string `json:"from"`
	}
	if c.json {
		out := map[string]setting{}
		for _, k := range config.Keys {
			out[k.Name] = setting{k.Value(r.Config), r.From[k.Name]}
		}
		return c.writeJSON(out)
	}
	for _, name := range r.Ignored {
		fmt.Fprintf(c.err, "skep: environment variable %s names no setting\n", name)
	}
	rows := [][]string{{"# KEY", "VALUE", "FROM", "MEANING"}}
	for _, k := range config.Keys {
		rows = append(rows, []string{k.Name, k.TOML(r.Config), r.From[k.Name], k.Help})
	}
	return table(c.out, rows)
}
