package experiment

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// first is ours: whether the first cold start of a snapshot is its worst.
var first = &Experiment{
	Name: "first", Figure: "Ours", Title: "The first cold starts of a snapshot",
	Question: "How much slower is the first cold start of a new snapshot than its tenth, where nothing is known of it, where it was asked whether it answers, and where a request was rehearsed?",
	Runs:     5,
	Points: func(set Settings) []Point {
		points := turns(set, set.Functions, []string{untried, tried, rehearsed})
		for i := range points {
			points[i].Seconds = 10 + firstStarts*points[i].Seconds
		}
		return points
	},
	Measure: measureFirst,
	Show:    showFirst,
}

// What is known of a snapshot when it is started for the first time.
const (
	untried   = "untried"   // nothing
	tried     = "tried"     // what it touched to answer whether it is there, as after every deployment
	rehearsed = "rehearsed" // and to answer a request with the first input
)

const firstStarts = 10

// measureFirst makes a row of cold starts from a new snapshot. Their inputs are others
// than the rehearsed one; the first and the last have the same.
func measureFirst(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "-"+p.Variant, func(f *api.Function) {
		if p.Variant == rehearsed {
			f.Rehearsal = api.Rehearsal{Path: "/?input=1"}
		}
	})
	if err != nil {
		return nil, err
	}
	if _, err := l.Client().CreateSnapshot(ctx, name); err != nil {
		return nil, err
	}
	if p.Variant == untried {
		src, err := l.Source(ctx, name)
		if err == nil {
			err = os.RemoveAll(filepath.Join(src.Dir, "trial"))
		}
		if err != nil {
			return nil, fmt.Errorf("forgetting what a trial of %s touched: %w", name, err)
		}
	}
	var samples []Sample
	for i := range firstStarts {
		s, err := l.restore(ctx, name, "stream", otherInput(i))
		if err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func showFirst(all []Sample) Section {
	c := &chart.Lines{Info: chart.Info{Name: "first-starts", Title: "Cold starts of a new snapshot, as times of its tenth",
		Caption: "Geometric mean over the functions of the medians of ratios within a row. The first start records."}, XLabel: "cold start", YLabel: "times the tenth"}
	t := Table{Name: "first-starts", Head: []string{"function", "snapshot", "first ms", "second ms", "tenth ms", "first / tenth", "faults: first", "second", "tenth"}}
	var found []string
	inks := map[string]chart.Ink{untried: chart.Grey, tried: chart.Yellow, rehearsed: chart.Blue}
	for _, v := range variantsOf(all) {
		s := chart.Series{Name: v, Ink: inks[v]}
		for i := range firstStarts {
			var ratios []float64
			for _, f := range functionsOf(all) {
				ratios = append(ratios, ratio(nth(all, f, v, i), nth(all, f, v, firstStarts-1)).Value)
			}
			mean := stat.GeoMean(ratios)
			s.Points = append(s.Points, chart.NewXY(float64(i+1), []float64{mean}))
			if i == 0 {
				found = append(found, fmt.Sprintf("%s: the first start takes %s as long as the tenth, in the geometric mean.", v, times(mean)))
			}
		}
		c.Series = append(c.Series, s)
	}
	for _, f := range functionsOf(all) {
		for _, v := range variantsOf(all) {
			one, two, ten := nth(all, f, v, 0), nth(all, f, v, 1), nth(all, f, v, firstStarts-1)
			t.Rows = append(t.Rows, []string{f, v, span(summary(one)), span(summary(two)), span(summary(ten)), times(ratio(one, ten).Value),
				number(medianFaults(one)), number(medianFaults(two)), number(medianFaults(ten))})
		}
	}
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: found,
		Caveats: []string{"Every start has another input than the rehearsed one; the first and the tenth have the same."}}
}

// nth are the samples of one place in the rows of a function and a variant.
func nth(all []Sample, function, variant string, i int) []Sample {
	return where(pick(all, function, variant), func(s Sample) bool { return s.Instance == i })
}
