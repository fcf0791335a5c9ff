package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/skep-dev/skep/api"
)

// leastPhase is what a phase's median must be in some row to get a column.
const leastPhase = 50 * time.Microsecond

// phaseTable makes a table of samples: a row for each variant in the order of
// their first sample, medians, and a column for each phase that matters.
func phaseTable(samples []sample, spread bool) [][]string {
	var order []string
	groups := map[string][]sample{}
	for _, s := range samples {
		if groups[s.Variant] == nil {
			order = append(order, s.Variant)
		}
		groups[s.Variant] = append(groups[s.Variant], s)
	}
	medians := map[string][]time.Duration{} // variant -> phases in order
	for _, v := range order {
		medians[v] = phaseMedians(groups[v])
	}
	var columns []int
	for i, name := range api.PhaseNames {
		if name == "total" {
			continue
		}
		for _, v := range order {
			if medians[v][i] >= leastPhase {
				columns = append(columns, i)
				break
			}
		}
	}
	head := []string{"START", "RUNS", "TOTAL ms"}
	if spread {
		head = append(head, "P10", "P90")
	}
	for _, i := range columns {
		head = append(head, api.PhaseNames[i])
	}
	rows := [][]string{append(head, "faults", "read")}
	for _, v := range order {
		rows = append(rows, phaseRow(v, groups[v], medians[v], columns, spread))
	}
	return rows
}

func phaseRow(name string, group []sample, medians []time.Duration, columns []int, spread bool) []string {
	totals := make([]time.Duration, len(group))
	var faults, read []time.Duration // counts; quantile works on them as well
	for i, s := range group {
		totals[i] = s.Record.Phases.Total
		if m := s.Record.Memory; m != nil {
			faults, read = append(faults, time.Duration(m.Faults)), append(read, time.Duration(m.BytesRead))
		}
	}
	slices.Sort(totals)
	row := []string{name, strconv.Itoa(len(group)), millis(quantile(totals, 0.5))}
	if spread {
		row = append(row, millis(quantile(totals, 0.1)), millis(quantile(totals, 0.9)))
	}
	for _, i := range columns {
		row = append(row, millis(medians[i]))
	}
	if len(faults) == 0 {
		return append(row, "-", "-")
	}
	slices.Sort(faults)
	slices.Sort(read)
	return append(row, strconv.FormatInt(int64(quantile(faults, 0.5)), 10), size(int64(quantile(read, 0.5))))
}

// phaseMedians returns the median of every phase, in the order of api.PhaseNames.
func phaseMedians(group []sample) []time.Duration {
	out := make([]time.Duration, len(api.PhaseNames))
	for i, name := range api.PhaseNames {
		var d []time.Duration
		for _, s := range group {
			s.Record.Phases.Each(func(n string, v time.Duration) {
				if n == name {
					d = append(d, v)
				}
			})
		}
		slices.Sort(d)
		out[i] = quantile(d, 0.5)
	}
	return out
}
