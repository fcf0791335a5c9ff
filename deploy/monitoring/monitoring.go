// Package monitoring has what an operator's own Prometheus and Grafana take to watch skep:
// alerts with their tests, and a dashboard. Nothing of it is in a program.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
)

// Query is one expression of the dashboard, or of an alert.
type Query struct {
	Of   string // the panel's title, the alert's or the variable's name
	Expr string // in PromQL; the dashboard's has variables
}

type target struct {
	Expr string `json:"expr"`
}

type dashboard struct {
	Panels []struct {
		Title   string   `json:"title"`
		Type    string   `json:"type"`
		Targets []target `json:"targets"`
	} `json:"panels"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []struct {
			Name string `json:"name"`
			Expr string `json:"expr"`
		} `json:"list"`
	} `json:"annotations"`
}

var labelValues = regexp.MustCompile(`^label_values\((.*), *\w+\)$`)

// Dashboard returns the queries of dashboard.json in a directory.
func Dashboard(dir string) ([]Query, error) {
	b, err := os.ReadFile(filepath.Join(dir, "dashboard.json"))
	if err != nil {
		return nil, err
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("dashboard.json: %w", err)
	}
	var out []Query
	for _, p := range d.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			return nil, fmt.Errorf("dashboard.json: panel %q asks nothing", p.Title)
		}
		for _, t := range p.Targets {
			out = append(out, Query{p.Title, t.Expr})
		}
	}
	for _, v := range d.Templating.List {
		if m := labelValues.FindStringSubmatch(v.Definition); m != nil {
			out = append(out, Query{"variable " + v.Name, m[1]})
		}
	}
	for _, a := range d.Annotations.List {
		out = append(out, Query{"annotation " + a.Name, a.Expr})
	}
	return out, nil
}

// Alerts returns the queries of alerts.yaml in a directory.
func Alerts(dir string) ([]Query, error) {
	b, err := os.ReadFile(filepath.Join(dir, "alerts.yaml"))
	if err != nil {
		return nil, err
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert string `yaml:"alert"`
				Expr  string `yaml:"expr"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(b, &rules); err != nil {
		return nil, fmt.Errorf("alerts.yaml: %w", err)
	}
	var out []Query
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			out = append(out, Query{r.Alert, r.Expr})
		}
	}
	return out, nil
}

// In order, as Grafana would with these choices: all nodes and functions, a minute.
var choices = strings.NewReplacer("$__rate_interval", "1m", "$function", ".*", "$instance", ".*", "$job", "skep", "$__range", "1h")

// Chosen is the query with the dashboard's variables set to everything there is.
func (q Query) Chosen() string { return choices.Replace(q.Expr) }

var metricRE = regexp.MustCompile(`\b(?:skep|process|go)_\w+|\bup\b`)

// Metrics are the names of metrics in the query, each once.
func (q Query) Metrics() []string {
	names := metricRE.FindAllString(q.Expr, -1)
	slices.Sort(names)
	return slices.Compact(names)
}
