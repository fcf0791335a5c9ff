package replay

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// gridTouchers are the numbers of threads that a grid has.
var gridTouchers = []int{1, 4, 16}

// Grid is Run in every case of a grid: few threads and many, files in the page
// cache or not, touches as fast as they can be made or when the trace says. A
// policy that is the default must lose to none in any. How many processors there
// are is for who starts the process to vary.
func Grid(ctx context.Context, o Options) ([]Report, error) {
	var out []Report
	for _, cold := range []bool{false, true} {
		for _, pauses := range []bool{false, true} {
			for _, touchers := range gridTouchers {
				o.Cold, o.Pauses, o.Touchers = cold, pauses, touchers
				rep, err := Run(ctx, o)
				if err != nil {
					return out, fmt.Errorf("%s: %w", rep.inWords(), err)
				}
				out = append(out, rep)
			}
		}
	}
	return out, nil
}

// inWords is the case of a report.
func (r Report) inWords() string {
	cache, pace := "warm", "no pauses"
	if r.Cold {
		cache = "cold"
	}
	if r.Pauses {
		pace = "as recorded"
	}
	return fmt.Sprintf("%s, %s, %d threads", cache, pace, r.Touchers)
}

// GridTable writes the medians of the totals, and of the faults of each policy.
func GridTable(w io.Writer, reports []Report) error {
	if len(reports) == 0 {
		return nil
	}
	first := reports[0]
	fmt.Fprintf(w, "%d pages in %d runs, %d processors; medians of the total, and of the faults\n\n", first.Trace.Pages, first.Trace.Runs, first.Host.CPUs)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	policies := names(first.Samples, func(s Sample) string { return s.Policy })
	for _, p := range policies {
		fmt.Fprintf(tw, "\t%s\tfaults", p)
	}
	fmt.Fprintln(tw, "\t")
	for _, r := range reports {
		fmt.Fprint(tw, r.inWords())
		for _, p := range policies {
			ss := pick(r.Samples, func(s Sample) bool { return s.Policy == p })
			fmt.Fprintf(tw, "\t%s\t%d", ms(ss, func(s Sample) time.Duration { return s.Total }), mid(ss, func(s Sample) int64 { return s.Faults }))
		}
		fmt.Fprintln(tw, "\t")
	}
	return tw.Flush()
}
