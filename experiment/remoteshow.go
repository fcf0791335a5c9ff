package experiment

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// remoteGoal is how many times as long as a local start one from the store may take.
const remoteGoal = 1.5

// What may be stored of a function, as a share of its guest's memory: of any, and of one after others on its base.
const (
	storedGoal = 0.25
	laterGoal  = 0.15
)

func remoteInk(place string) chart.Ink {
	switch place {
	case remoteLocal:
		return chart.Grey
	case remoteLinks[0].name:
		return chart.Sky
	case remoteLinks[1].name:
		return chart.Blue
	}
	return chart.Orange
}

func showRemote(all []Sample) Section {
	stored := pick(all, "", remoteStored)
	starts := where(all, func(s Sample) bool { return s.Variant != remoteStored })
	single := where(starts, func(s Sample) bool { return s.N == 0 })
	crowd := where(starts, func(s Sample) bool { return s.N > 0 })
	sec := Section{Tables: []Table{remoteTable("remote", single)}}
	sec.Charts = append(sec.Charts, remoteChart(single))
	sec.Findings = remoteFindings(single)
	if len(crowd) > 0 {
		sec.Tables = append(sec.Tables, remoteTable("remote-nodes", crowd))
		sec.Findings = append(sec.Findings, crowdFindings(crowd)...)
	}
	if len(stored) > 0 {
		t, found := storedTable(stored, starts)
		sec.Tables, sec.Findings = append(sec.Tables, t), append(sec.Findings, found...)
	}
	if t := linkTable(starts); len(t.Rows) > 0 {
		sec.Tables = append(sec.Tables, t)
	}
	sec.Caveats = []string{
		"Each start from the store is the first of a new daemon, whose data directory has the function and nothing else: no part of the snapshot, no chunk, no root disk, unless it says so. A local one is the first of a new daemon, too, whose data directory has all; it is not in the page cache.",
		"Daemons, link and store are on one machine and share its processors. The store's objects are in its page cache. The link is a proxy in user space: there is no congestion and no slow start.",
		"Fetched, requests and waits are until the first response; fetching goes on beside the start, so that some of it was not waited for. A mapped start waits until the snapshot is whole.",
	}
	return sec
}

// place is where a variant's snapshot is, and what else is there.
func place(s Sample) string {
	_, at, _ := strings.Cut(s.Variant, ", ")
	return at
}

func policyOf(s Sample) string {
	policy, _, _ := strings.Cut(s.Variant, ", ")
	return policy
}

func remoteChart(single []Sample) chart.Chart {
	c := &chart.Bars{Info: chart.Info{Name: "remote", Title: "Cold start by where the snapshot is",
		Caption: "Over each link nothing of the snapshot is on the node, nor its root disk."}, Unit: "ms", Log: true}
	places := []string{remoteLocal}
	for _, l := range remoteLinks {
		places = append(places, l.name)
	}
	for _, p := range places {
		c.Keys = append(c.Keys, chart.Key{Name: p, Ink: remoteInk(p)})
	}
	for _, f := range functionsOf(single) {
		for _, policy := range distinct(pick(single, f, ""), policyOf) {
			g := chart.Group{Label: f + " " + policy}
			for _, p := range places {
				if of := pick(single, f, variantOf(policy, p)); len(of) > 0 {
					g.Bars = append(g.Bars, chart.NewBar(p, remoteInk(p), totals(of), 0))
				}
			}
			c.Groups = append(c.Groups, g)
		}
	}
	return c
}

// remoteTable has a row for each function and variant, in which local starts of the same runs are what the others are
// compared with.
func remoteTable(name string, starts []Sample) Table {
	t := Table{Name: name, Head: []string{"function", "policy", "snapshot", "nodes", "ms", "/ local", "until whole ms", "fetched MB", "of all MB", "working set MB", "requests", "waits", "waited ms"}}
	for _, f := range functionsOf(starts) {
		for _, v := range variantsOf(pick(starts, f, "")) {
			of := pick(starts, f, v)
			against := "–"
			if r := ratio(of, pick(starts, f, variantOf(policyOf(of[0]), remoteLocal))); place(of[0]) != remoteLocal && r.Value > 0 {
				against = times(r.Value)
			}
			row := []string{f, policyOf(of[0]), place(of[0]), itoa(max(of[0].N, 1)), span(summary(of)), against}
			if place(of[0]) == remoteLocal {
				row = append(row, "–", "–", "–", touchedMB(of), "–", "–", "–")
			} else {
				row = append(row,
					ofRemote(of, func(r *Remote) float64 { return ms(r.Whole) }),
					ofRemote(of, func(r *Remote) float64 { return float64(r.Fetched) / 1e6 }),
					ofRemote(of, func(r *Remote) float64 { return float64(r.Total) / 1e6 }),
					touchedMB(of),
					ofRemote(of, func(r *Remote) float64 { return float64(r.Requests) }),
					ofRemote(of, func(r *Remote) float64 { return float64(r.Waits) }),
					ofRemote(of, func(r *Remote) float64 { return ms(r.Waited) }))
			}
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}

func ofRemote(of []Sample, f func(*Remote) float64) string {
	return number(stat.Median(values(of, func(s Sample) float64 {
		if s.Remote == nil {
			return 0
		}
		return f(s.Remote)
	})))
}

// touchedMB is the memory that starts needed until their first response: prefetched, or served.
func touchedMB(of []Sample) string {
	mb := stat.Median(values(of, func(s Sample) float64 {
		if s.Record == nil || s.Record.Memory == nil {
			return 0
		}
		return float64(s.Record.Memory.Prefetched+s.Record.Memory.Faults) * 4096 / 1e6
	}))
	if mb == 0 {
		return "–" // mapped
	}
	return number(mb)
}

func remoteFindings(single []Sample) []string {
	var out []string
	for _, v := range variantsOf(single) {
		policy, at, _ := strings.Cut(v, ", ")
		if at == remoteLocal {
			continue
		}
		var against []float64
		for _, f := range functionsOf(single) {
			if r := ratio(pick(single, f, v), pick(single, f, variantOf(policy, remoteLocal))); r.Value > 0 {
				against = append(against, r.Value)
			}
		}
		if len(against) == 0 {
			continue
		}
		lo, hi := extremes(against)
		mean := stat.GeoMean(against)
		goal := "within"
		if mean > remoteGoal {
			goal = "beyond"
		}
		out = append(out, fmt.Sprintf("%s from the store, %s, takes %s as long as a local start in the geometric mean%s: %s the goal of %s.", policy, at, times(mean), spread(lo, hi), goal, times(remoteGoal)))
	}
	return out
}

func crowdFindings(crowd []Sample) []string {
	var out []string
	for _, v := range variantsOf(crowd) {
		of := pick(crowd, "", v)
		last, _ := waves(of)
		out = append(out, fmt.Sprintf("%d nodes at once, %s: %s ms in the median, the last after %s ms.", of[0].N, v, number(summary(of).Median), number(last)))
	}
	return out
}

// storedTable is what each push has stored, in the order of the pushes, and what of the snapshot is not root disk, as the
// starts from it found.
func storedTable(stored, starts []Sample) (Table, []string) {
	t := Table{Name: "remote-stored", Head: []string{"function", "guest memory MiB", "content MB", "new MB", "stored MB", "stored / guest memory", "all but the root disk MB", "/ guest memory"}}
	var written, guests float64
	var shares, without []float64 // without: those of them whose root disk is known
	for _, s := range stored {
		p, guest := s.Remote.Pushed, float64(s.Remote.Guest)
		share := float64(p.Written) / guest
		row := []string{s.Function, number(guest / (1 << 20)), number(float64(p.Content) / 1e6), number(float64(p.New) / 1e6), number(float64(p.Written) / 1e6), percent(share)}
		if alone := snapshotAlone(pick(starts, s.Function, "")); alone > 0 {
			row = append(row, number(alone/1e6), percent(alone/guest))
			without = append(without, alone/guest)
		} else {
			row = append(row, "–", "–")
		}
		t.Rows, shares = append(t.Rows, row), append(shares, share)
		written, guests = written+float64(p.Written), guests+guest
	}
	t.Rows = append(t.Rows, []string{"together", number(guests / (1 << 20)), "–", "–", number(written / 1e6), percent(written / guests), "–", "–"})
	found := []string{fmt.Sprintf("Stored for the first function: %s of its guest's memory, root disk included (the goal: %s at most).", percent(shares[0]), percent(storedGoal))}
	if len(without) > 0 {
		found = append(found, fmt.Sprintf("All of a snapshot but its root disk, which is no guest memory, takes at most %s of that in the store, with what it shares with others.", percent(slices.Max(without))))
	}
	if later := shares[1:]; len(later) > 0 {
		found = append(found, fmt.Sprintf("For each later one at most %s (the goal on a shared base: %s); together %s of all guests' memory.", percent(slices.Max(later)), percent(laterGoal), percent(written/guests)))
	}
	return t, found
}

// snapshotAlone is what is stored of a snapshot without its root disk, whoever shares it, in bytes.
func snapshotAlone(starts []Sample) float64 {
	var total []float64
	for _, s := range starts {
		if s.Record != nil && s.Record.Memory != nil && s.Record.Memory.Remote != nil {
			total = append(total, float64(s.Record.Memory.Remote.Total))
		}
	}
	if len(total) == 0 {
		return 0
	}
	return stat.Median(total)
}

func linkTable(starts []Sample) Table {
	t := Table{Name: "remote-links", Head: []string{"link", "delay", "rate Gbit/s", "a request of a byte ms", "4 × 4 MiB at once MB/s"}}
	for _, l := range remoteLinks {
		var request, rate []float64
		for _, s := range starts {
			if s.Remote != nil && s.Remote.Link != nil && s.Remote.Link.Name == l.name {
				request, rate = append(request, ms(s.Remote.Link.Request)), append(rate, s.Remote.Link.MBps)
			}
		}
		if len(request) > 0 {
			t.Rows = append(t.Rows, []string{l.name, l.RTT.Round(time.Microsecond).String(), number(float64(l.Rate) * 8 / 1e9), number(stat.Median(request)), number(stat.Median(rate))})
		}
	}
	return t
}
