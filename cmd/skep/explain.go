package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
)

// explain shows where an invocation's time went, on stderr.
func (c *cli) explain(ctx context.Context, client *api.Client, resp *http.Response) error {
	rec, err := record(ctx, client, resp)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "\n%d %s, %s start", rec.Status, http.StatusText(rec.Status), dash(string(rec.Start)))
	if rec.Instance != "" {
		fmt.Fprintf(c.err, " on instance %s", rec.Instance)
	}
	if rec.Snapshot != "" {
		fmt.Fprintf(c.err, " from snapshot %s", rec.Snapshot)
	}
	fmt.Fprintln(c.err)
	if err := table(c.err, phaseRows(rec.Phases)); err != nil {
		return err
	}
	if rec.Memory != nil {
		fmt.Fprintln(c.err)
		return table(c.err, memoryRows(*rec.Memory))
	}
	return nil
}

// phaseMeaning says what a phase is, for people.
var phaseMeaning = map[string]string{
	"queue":   "waiting for an instance",
	"slot":    "taking a network slot",
	"spawn":   "starting the VMM's process",
	"load":    "loading device state",
	"install": "installing guest memory",
	"resume":  "resuming the vCPUs",
	"boot":    "booting kernel and agent",
	"clone":   "telling the guest that it is a clone",
	"init":    "starting the function",
	"connect": "connecting to the function",
	"process": "the function at work, to its first byte",
	"stream":  "the rest of the answer",
	"total":   "request in to response out",
}

func phaseRows(p api.Phases) [][]string {
	rows := [][]string{{"PHASE", "ms", "", "WHAT"}}
	p.Each(func(name string, d time.Duration) {
		if d == 0 && name != "total" {
			return
		}
		width := 0
		if p.Total > 0 && name != "total" {
			width = int(d * 30 / p.Total)
		}
		rows = append(rows, []string{name, millis(d), strings.Repeat("█", min(width, 30)), phaseMeaning[name]})
	})
	return rows
}

func memoryRows(m api.MemoryStats) [][]string {
	known := func(pages int64) string {
		if pages < 0 {
			return "not known"
		}
		return strconv.FormatInt(pages, 10)
	}
	rows := [][]string{
		{"MEMORY", ""},
		{"policy", m.Policy},
		{"pages prefetched", strconv.FormatInt(m.Prefetched, 10)},
		{"of them not touched", known(m.Wasted)},
		{"pages missed", known(m.Missed)},
		{"faults served", fmt.Sprintf("%d in %s ms", m.Faults, millis(m.HandlerTime))},
		{"pages of zeros", strconv.FormatInt(m.ZeroPages, 10)},
		{"zeros laid ahead", strconv.FormatInt(m.ZeroedAhead, 10)},
		{"bytes read", size(m.BytesRead)},
		{"fetch", millis(m.FetchTime) + " ms"},
		{"install", millis(m.InstallTime) + " ms"},
	}
	if r := m.Remote; r != nil {
		rows = append(rows, []string{"from the object store", fmt.Sprintf("%s of %s, the first of it in %s ms", size(r.Fetched), size(r.Total), millis(r.Began))},
			[]string{"waits for that", fmt.Sprintf("%d in %s ms", r.Waits, millis(r.Waited))})
	}
	if m.Note != "" {
		rows = append(rows, []string{"note", m.Note})
	}
	return rows
}

// summarise shows records: one a line as JSON, or medians by start kind.
func (c *cli) summarise(recs []api.Invocation, took time.Duration) error {
	if c.json {
		return c.writeLines(recs)
	}
	if len(recs) == 0 {
		return nil
	}
	groups := map[string][]time.Duration{}
	failed := map[string]int{}
	for _, r := range recs {
		key := startLabel(r)
		groups[key] = append(groups[key], r.Phases.Total)
		if r.Status/100 != 2 {
			failed[key]++
		}
	}
	rows := [][]string{{"START", "CALLS", "NOT 2xx", "MEDIAN ms", "P10", "P90", "MIN", "MAX"}}
	keys := make([]string, 0, len(groups))
	for k := range groups {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		d := groups[k]
		slices.Sort(d)
		rows = append(rows, []string{
			k, strconv.Itoa(len(d)), strconv.Itoa(failed[k]), millis(quantile(d, 0.5)), millis(quantile(d, 0.1)), millis(quantile(d, 0.9)), millis(d[0]), millis(d[len(d)-1]),
		})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(c.err, "%d calls in %.2f s, %.1f a second\n", len(recs), took.Seconds(), float64(len(recs))/took.Seconds())
	return nil
}

// startLabel is a start kind, with the policy of a restore.
func startLabel(r api.Invocation) string {
	if r.Memory != nil && r.Memory.Policy != "" {
		return string(r.Start) + " " + r.Memory.Policy
	}
	return dash(string(r.Start))
}

// quantile returns the q-quantile of sorted durations, between neighbours.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + time.Duration((at-float64(i))*float64(sorted[i+1]-sorted[i]))
}
