package experiment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// storage is the paper's section 6.3: snapshots on slow storage.
var storage = &Experiment{
	Name: "storage", Figure: "Section 6.3", Title: "Snapshots on slow storage",
	Question: "How much does prefetching gain when the disk is slow, as the paper's 7200 rpm one?",
	Unavailable: func(set Settings) string {
		if _, err := findThrottle(); err != nil {
			return err.Error()
		}
		return ""
	},
	Points: func(set Settings) []Point {
		on := set.Functions
		if set.Quick {
			on = []string{simplest(set)}
		}
		points := turns(set, on, []string{"mmap", "reap", "stream"})
		for i := range points {
			if points[i].Variant == "mmap" {
				points[i].Seconds += 30
			}
		}
		return points
	},
	Runs:    2, // a mapped start takes half a minute
	Measure: measureStorage,
	Show:    showStorage,
}

// Limit is how slow a disk is made. The default is like a disk of 7200 rpm.
type Limit struct {
	BPS  int64 `json:"bytes_per_s"`
	IOPS int64 `json:"reads_per_s"`
}

func measureStorage(ctx context.Context, l *Lab, p Point) (_ []Sample, err error) {
	name, err := l.Function(ctx, p.Function, "-slow", func(f *api.Function) {
		f.ReadyTimeout, f.Timeout = api.Duration(5*time.Minute), api.Duration(5*time.Minute)
	})
	if err != nil {
		return nil, err
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return nil, err
	}
	slow, err := slowDown(src.Path, l.Set.Storage)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, slow.end()) }()
	s, err := l.Cold(ctx, name, p.Variant, p.Input)
	s.Storage = &slow.Storage
	// The machine must have ended before this process can leave the group.
	return one(s, errors.Join(err, l.Quiet(context.WithoutCancel(ctx), name)))
}

func showStorage(all []Sample) Section {
	c := &chart.Bars{Info: chart.Info{Name: "sec6-storage", Title: "Cold start from slow storage"}, Unit: "ms", Log: true}
	for _, v := range variantsOf(all) {
		c.Keys = append(c.Keys, chart.Key{Name: v, Ink: chart.PolicyInk(v)})
	}
	t := Table{Name: "sec6-storage", Head: []string{"function", "mmap ms", "reap ms", "stream ms", "reap gains", "stream gains"}}
	gains := map[string][]float64{}
	for _, f := range functionsOf(all) {
		g, row := chart.Group{Label: f}, []string{f}
		base := pick(all, f, "mmap")
		for _, v := range []string{"mmap", "reap", "stream"} {
			of := pick(all, f, v)
			g.Bars = append(g.Bars, chart.NewBar(v, chart.PolicyInk(v), totals(of), 0))
			row = append(row, span(summary(of)))
			if r := ratio(base, of); v != "mmap" && r.Value > 0 {
				gains[v] = append(gains[v], r.Value)
			}
		}
		c.Groups = append(c.Groups, g)
		t.Rows = append(t.Rows, append(row, gainOf(gains, "reap"), gainOf(gains, "stream")))
	}
	if len(all) > 0 && all[0].Storage != nil {
		s := all[0].Storage
		c.Caption = fmt.Sprintf("Logarithmic. Reads of the VMM and of the daemon limited to %s MB/s and %d a second by %s.", number(float64(s.BPS)/1e6), s.IOPS, s.Method)
	}
	return Section{Charts: []chart.Chart{c}, Tables: []Table{t}, Findings: []string{
		fmt.Sprintf("reap gains %s and stream %s over mmap in the geometric mean (the paper's REAP: 5.4×).", times(stat.GeoMean(gains["reap"])), times(stat.GeoMean(gains["stream"]))),
	}, Caveats: []string{"A limit on requests and bytes is not a disk with a head: it has no seek that grows with distance, and a read that is over the limit waits for the limit's next tick, however small it is."}}
}
