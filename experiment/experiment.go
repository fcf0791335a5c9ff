package experiment

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skep-dev/skep/experiment/chart"
)

// Settings are what a run of experiments was asked for.
type Settings struct {
	Experiments []string `json:"experiments"`
	Functions   []string `json:"functions"`
	Policies    []string `json:"policies"`
	Runs        int      `json:"runs"` // of each variant; 0: each experiment's own
	Cold        string   `json:"cold"`
	Quick       bool     `json:"quick,omitempty"`
	MaxVMs      int      `json:"max_vms"`          // at once, in concurrency
	MaxReplays  int      `json:"max_replays"`      // at once
	Storage     Limit    `json:"storage"`          // of the slow disk
	Chosen      bool     `json:"chosen,omitempty"` // somebody has named the functions

	Shells int `json:"shells,omitempty"` // processes that wait for starts

	// KeepAlive is how long an instance stays after a call; 0: 400 ms.
	KeepAlive time.Duration `json:"keep_alive_ns,omitempty"`

	Scaling ScalingLoad `json:"scaling,omitzero"`

	Cluster        string `json:"cluster,omitempty"`      // directory of the one that stack is measured on
	GVisor         string `json:"gvisor_class,omitempty"` // its RuntimeClass for runsc; "": it has none
	WithoutCluster string `json:"-"`                      // why there is none
	WithoutStore   string `json:"-"`                      // why there is no object store; "": there is one
}

// What is dropped from the page cache before a cold start.
const (
	ColdNone  = "none"
	ColdFiles = "files" // the snapshot's files and the root disk
	ColdAll   = "all"   // and the VMM's binary
)

// Experiment is one figure of the paper.
type Experiment struct {
	Name     string
	Figure   string // of the paper
	Title    string
	Question string // that it answers, one sentence

	// Data is the name of what it measures, where experiments share that: the
	// points of the first of them are measured, for all. Default: its own name.
	Data string
	// Unavailable says why it cannot be measured here, "" if it can.
	Unavailable func(Settings) string

	// Functions are those that are measured where nobody says which; nil: all.
	Functions []string
	// Runs of each variant, where nobody says how many; 0: 10. Fewer where what is
	// counted hardly varies, or a run is many samples.
	Runs int
	// Points are what there is to measure, in the order in which it is done:
	// variants take turns within a run, so that a drifting machine is unfair to none.
	Points func(Settings) []Point
	// Measure measures a point once.
	Measure func(context.Context, *Lab, Point) ([]Sample, error)
	// Show makes figures and tables of the samples.
	Show func([]Sample) Section
}

// defaultRuns is for an Experiment that does not say.
const defaultRuns = 10

// points are those of the experiment for these settings.
func (e *Experiment) points(set Settings) []Point {
	if set.Runs == 0 {
		set.Runs = cmp.Or(e.Runs, defaultRuns)
	}
	return e.Points(set)
}

func (e *Experiment) data() string {
	if e.Data != "" {
		return e.Data
	}
	return e.Name
}

// Section is an experiment's part of a report.
type Section struct {
	Findings []string // one sentence each, made of the samples
	Charts   []chart.Chart
	Tables   []Table
	Caveats  []string // what is emulated, replayed, or else than in the paper
}

// Table is a table; numbers are right-aligned.
type Table struct {
	Name string // of its file
	Head []string
	Rows [][]string
}

// All are the experiments, in the order of the report.
func All() []*Experiment {
	return []*Experiment{
		breakdown, contiguity, footprint, reuse, steps, policies, native, recording,
		concurrency, mispredictions, drift, first, limits, density, load, storage, remote, stack, scaling,
	}
}

// Find returns the experiment of that name.
func Find(name string) (*Experiment, error) {
	var names []string
	for _, e := range All() {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return nil, fmt.Errorf("no experiment %q: there are %s", name, strings.Join(names, ", "))
}

// turns makes points of every function and variant, run by run; functions one
// after the other within a run, variants next to each other. Cold starts take
// the inputs in turn, none of them the one that was recorded.
func turns(set Settings, functions, variants []string) []Point {
	var out []Point
	for run := range set.Runs {
		for _, f := range functions {
			for _, v := range variants {
				out = append(out, Point{Function: f, Variant: v, Run: run, Input: otherInput(run), Seconds: 0.7 + 1.2*warmSeconds[f]})
			}
		}
	}
	return out
}

// otherInput is an input of that run which is not the first.
func otherInput(run int) int { return 2 + run%(Inputs-1) }
