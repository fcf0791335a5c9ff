package replay

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Table writes the medians side by side.
func (r Report) Table(w io.Writer) error {
	fmt.Fprintf(w, "%d pages in %d runs (%.2f pages each), %d toucher(s), %d instance(s), page cache %s; medians\n\n",
		r.Trace.Pages, r.Trace.Runs, r.Trace.Contiguity, r.Touchers, r.Instances, map[bool]string{true: "cold", false: "warm"}[r.Cold])
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\tfetch\tinstall\tcopying\tserve\ttotal\tfaults\ttouch\tread\t")
	for _, name := range names(r.Samples, func(s Sample) string { return s.Policy }) {
		ss := pick(r.Samples, func(s Sample) bool { return s.Policy == name })
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%.0f MB/s\t\n", name,
			ms(ss, func(s Sample) time.Duration { return s.Fetch }), ms(ss, func(s Sample) time.Duration { return s.Install }),
			ms(ss, func(s Sample) time.Duration { return s.Copying }),
			ms(ss, func(s Sample) time.Duration { return s.Serve }), ms(ss, func(s Sample) time.Duration { return s.Total }),
			mid(ss, func(s Sample) int64 { return s.Faults }), us(mid(ss, func(s Sample) time.Duration { return s.Touch })),
			mid(ss, func(s Sample) float64 { return s.MBps }))
	}
	for _, name := range names(r.Floors, func(f Floor) string { return f.Name }) {
		fs := pick(r.Floors, func(f Floor) bool { return f.Name == name })
		fmt.Fprintf(tw, "floor: %s\t\t\t\t\t%s\t\t%s\t%.0f MB/s\t\n", name, ms(fs, func(f Floor) time.Duration { return f.Total }),
			us(mid(fs, func(f Floor) time.Duration { return f.Each })), mid(fs, func(f Floor) float64 { return f.MBps }))
	}
	return tw.Flush()
}

func names[T any](all []T, name func(T) string) (out []string) {
	for _, t := range all {
		if n := name(t); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func pick[T any](all []T, keep func(T) bool) (out []T) {
	for _, t := range all {
		if keep(t) {
			out = append(out, t)
		}
	}
	return out
}

func mid[T any, N int64 | float64 | time.Duration](all []T, f func(T) N) N {
	var v []N
	for _, t := range all {
		v = append(v, f(t))
	}
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

func ms[T any](all []T, f func(T) time.Duration) string {
	return fmt.Sprintf("%.2f ms", mid(all, f).Seconds()*1e3)
}

func us(d time.Duration) string { return fmt.Sprintf("%.1f µs", d.Seconds()*1e6) }
