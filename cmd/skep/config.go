package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
)

func (c *cli) configCmd() *cobra.Command {
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
  SKEP_VMM=qemu skep config`,
		Args: nArgs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			return c.printConfig(r)
		},
	}
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
		rows = append(rows, []string{k.Name, show(k.Value(r.Config)), r.From[k.Name], k.Help})
	}
	return table(c.out, rows)
}

// show writes a setting's value as TOML does.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = fmt.Sprintf("%q", s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(v)
}
