package experiment

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// load is the end of the paper's section 6.3: cold starts while other functions,
// warm, answer requests.
var load = &Experiment{
	Name: "load", Figure: "Section 6.3", Title: "Beside warm functions under load",
	Question: "Do cold starts take longer while other functions on the machine, warm, answer requests?",
	Points: func(set Settings) []Point {
		points := turns(set, []string{simplest(set)}, []string{"mmap alone", "mmap loaded", "reap alone", "reap loaded", "stream alone", "stream loaded"})
		for i := range points {
			points[i].N = warmFunctions(set)
			if i == 1 { // the first to be loaded deploys them
				points[i].Seconds += deploySeconds * float64(points[i].N)
			}
		}
		return points
	},
	Measure: measureLoad,
	Show:    showLoad,
}

// warmFunctions are the paper's 20, fewer for a quick look.
func warmFunctions(set Settings) int {
	if set.Quick {
		return 2
	}
	return 20
}

// loadEvery is the pause between two requests to one warm function.
const loadEvery = 500 * time.Millisecond

func measureLoad(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	var policy, how string
	if _, err := fmt.Sscan(p.Variant, &policy, &how); err != nil {
		return nil, err
	}
	if how == "alone" {
		return one(l.Cold(ctx, name, policy, p.Input))
	}
	warm := make([]string, p.N)
	for i := range warm {
		if warm[i], err = l.Function(ctx, p.Function, fmt.Sprintf("-warm%d", i), func(f *api.Function) { f.KeepAlive = api.Duration(10 * time.Minute) }); err != nil {
			return nil, err
		}
		if _, err := l.invoke(ctx, warm[i], invocation{input: 1}); err != nil {
			return nil, err
		}
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	stop := l.keepBusy(ctx, warm)
	s, err := l.Cold(ctx, name, policy, p.Input)
	return one(s, errors.Join(err, stop()))
}

// keepBusy sends requests to warm functions until stop, which waits for the last.
func (l *Lab) keepBusy(ctx context.Context, names []string) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			// Spread over the pause, not all at once.
			next := time.Duration(i) * loadEvery / time.Duration(len(names))
			for sleep(ctx, next) == nil {
				if _, err := l.invoke(context.WithoutCancel(ctx), name, invocation{input: 1}); err != nil {
					errs[i] = fmt.Errorf("under load: %w", err)
					return
				}
				next = loadEvery
			}
		})
	}
	return func() error {
		cancel()
		wg.Wait()
		return errors.Join(errs...)
	}
}

func showLoad(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "sec6-load", Title: "Cold start alone and beside warm functions"}, Unit: "ms",
		Keys: []chart.Key{{Name: "alone", Ink: chart.Grey}, {Name: "loaded", Ink: chart.Orange}}}
	n := 0
	for _, s := range all {
		n = max(n, s.N)
	}
	c.Caption = fmt.Sprintf("Loaded: %d warm functions, each called every %v. Alone: they idle, or are not there yet.", n, loadEvery)
	t := Table{Name: "sec6-load", Head: []string{"policy", "alone ms", "loaded ms", "loaded / alone"}}
	var out []string
	for _, v := range []string{"mmap", "reap", "stream"} {
		a, b := totals(pick(all, "", v+" alone")), totals(pick(all, "", v+" loaded"))
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		c.Groups = append(c.Groups, chart.Group{Label: v, Bars: []chart.Bar{chart.NewBar("alone", chart.Grey, a, 0), chart.NewBar("loaded", chart.Orange, b, 0)}})
		cmp := stat.Compare(a, b)
		t.Rows = append(t.Rows, []string{v, span(cmp.A), span(cmp.B), times(cmp.Change.Value)})
		out = append(out, fmt.Sprintf("%s takes %s as long under load as alone [%s–%s].", v, times(cmp.Change.Value), number(cmp.Change.Lo), number(cmp.Change.Hi)))
	}
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: append(out, "The paper: within 5%, on 48 cores."),
		Caveats: []string{"On a machine of few cores, warm functions under emulation take the cores that a cold start needs."}}
}
