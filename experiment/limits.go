package experiment

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
	"github.com/skep-dev/skep/memory/workingset"
)

// limits is ours: each part of a cold start beside the least that it can take on
// this machine, measured just before.
var limits = &Experiment{
	Name: "limits", Figure: "Ours", Title: "What stands between a cold start and its floor",
	Question: "How far is each part of a cold start from what the kernel, the disk and the VMM's own program take at least?",
	Points:   limitPoints,
	Measure:  measureLimits,
	Show:     showLimits,
}

// Variants of limits, beside policies replayed alone.
const (
	limitStart    = "stream"                // a cold start, its VMM's process included
	limitReady    = "stream, process waits" // the same where one was started ahead
	limitResident = "resident"              // without a fault
	limitWarm     = "warm"
)

// readyTime is more than it takes until a process waits again after the start that took the last one.
const readyTime = 3 * time.Second

// limitPoints are of the simplest function. Where processes wait for starts, none is
// without: what is measured then is those.
func limitPoints(set Settings) []Point {
	variants := []string{limitStart, limitResident, limitWarm, "stream" + nativeAlone, "reap" + nativeAlone, "lazy" + nativeAlone}
	if set.Shells > 0 {
		variants = []string{limitReady}
	}
	return turns(set, []string{simplest(set)}, variants)
}

func measureLimits(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	if p.Variant == limitWarm {
		return one(l.Warm(ctx, name, p.Input))
	}
	if policy, ok := strings.CutSuffix(p.Variant, nativeAlone); ok {
		return l.replayAlone(ctx, name, policy)
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return nil, err
	}
	floors, err := startFloors(ctx, l.VMM(), filepath.Join(filepath.Dir(src.Path), "state"))
	if err != nil {
		return nil, fmt.Errorf("measuring the floors of a start: %w", err)
	}
	if p.Variant == limitReady {
		if err := sleep(ctx, readyTime); err != nil {
			return nil, err
		}
	}
	policy, _, _ := strings.Cut(p.Variant, ",")
	s, err := l.Cold(ctx, name, policy, p.Input)
	s.Floors = floors
	return one(s, err)
}

// replayAlone replays what a function touched, from a cold page cache and as fast as
// it can, after the floors of the same trace.
func (l *Lab) replayAlone(ctx context.Context, name, policy string) ([]Sample, error) {
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	if err := l.Quiet(ctx, name); err != nil {
		return nil, err
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return nil, err
	}
	cache, err := DropCache([]string{src.Path, filepath.Join(src.Dir, workingset.SetFile)})
	if err != nil {
		return nil, err
	}
	rep, err := replay.Run(ctx, replay.Options{
		Sources: []memory.Source{src}, Table: l.policies(), Policies: []string{policy}, Runs: 1, Cold: l.Set.Cold != ColdNone,
	})
	if err != nil {
		return nil, err
	}
	return []Sample{{Time: time.Now().UTC(), Replayed: true, Cache: &cache, Replay: &rep.Samples[0], Floors: rep.Floors}}, nil
}

// limit is a row of a table of limits.
type limit struct {
	part  string
	ours  []float64 // ms
	floor []float64 // ms; empty: there is none
	what  string    // the floor is
}

func (l limit) row() []string {
	floor, ratio := "–", "–"
	if len(l.floor) > 0 {
		floor = fine(l.floor)
		if f := stat.Median(l.floor); f > 0 {
			ratio = times(stat.Median(l.ours) / f)
		}
	}
	return []string{l.part, fine(l.ours), floor, ratio, l.what}
}

// fine is span where microseconds count.
func fine(v []float64) string {
	three := func(v float64) string {
		digits := 2 - int(math.Floor(math.Log10(max(math.Abs(v), 1e-3))))
		return strconv.FormatFloat(v, 'f', min(max(digits, 0), 4), 64)
	}
	s := stat.Summarize(v)
	if s.N < 2 {
		return three(s.Median)
	}
	return three(s.Median) + " [" + three(s.Lo) + "–" + three(s.Hi) + "]"
}

// phase is a phase of the starts, in ms; several are added up.
func phase(all []Sample, names ...string) []float64 {
	return values(all, func(s Sample) float64 { return stageTime(s, stage{phases: names}) })
}

// floor is a floor that was measured with the samples, in ms; what it took by call or
// touch where each is set.
func floor(all []Sample, name string, each bool) []float64 {
	var out []float64
	for _, s := range all {
		for _, f := range s.Floors {
			switch {
			case f.Name != name:
			case each:
				out = append(out, ms(f.Each))
			default:
				out = append(out, ms(f.Total))
			}
		}
	}
	return out
}

func replayTimes(all []Sample, of func(*replay.Sample) time.Duration) []float64 {
	return values(all, func(s Sample) float64 { return ms(of(s.Replay)) })
}

// larger of two floors that overlap, sample by sample.
func larger(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = max(a[i], b[i])
	}
	return out
}

func showLimits(all []Sample) Section {
	start, ready, resident, warm := pick(all, "", limitStart), pick(all, "", limitReady), pick(all, "", limitResident), pick(all, "", limitWarm)
	stream, reap, lazy := pick(all, "", "stream"+nativeAlone), pick(all, "", "reap"+nativeAlone), pick(all, "", "lazy"+nativeAlone)
	head := []string{"part", "ours ms", "floor ms", "ours / floor", "the floor is"}
	running := Table{Name: "limits-running", Head: append([]string{"start"}, head...)}
	var found []string
	for _, v := range []struct {
		name  string
		of    []Sample
		waits bool
	}{{"no process waits", start, false}, {"a process waits", ready, true}} {
		rows := untilRunning(v.of, v.waits)
		for _, r := range rows {
			running.Rows = append(running.Rows, append([]string{v.name}, r.row()...))
		}
		if len(v.of) > 0 {
			found = append(found, fmt.Sprintf("From the request until the vCPUs run, where %s: %s ms.", v.name, number(stat.Median(rows[len(rows)-1].ours))))
		}
	}
	disk, install := floor(stream, replay.FloorDisk, false), floor(stream, replay.FloorInstall, false)
	total := func(s *replay.Sample) time.Duration { return s.Total }
	t := Table{Name: "limits", Head: head}
	for _, l := range []limit{
		{"working set read (reap)", replayTimes(reap, func(s *replay.Sample) time.Duration { return s.Fetch }), floor(reap, replay.FloorDisk, false), "the same bytes past the page cache, 8 reads of 1 MiB at once"},
		{"working set read (stream, installing beside it)", replayTimes(stream, func(s *replay.Sample) time.Duration { return s.Fetch }), disk, "the same"},
		{"pages installed (reap)", replayTimes(reap, func(s *replay.Sample) time.Duration { return s.Copying }), floor(reap, replay.FloorInstall, false), "UFFDIO_COPY of the trace's runs, one after the other"},
		{"pages installed (stream, reading beside it)", replayTimes(stream, func(s *replay.Sample) time.Duration { return s.Copying }), install, "the same"},
		{"a fault (lazy, page from the disk)", replayTimes(lazy, func(s *replay.Sample) time.Duration { return s.Touch }), floor(lazy, replay.FloorFault, true), "a loop that never sleeps, page from memory"},
		{"memory, whole (stream)", replayTimes(stream, total), larger(disk, install), "the larger of reading and installing"},
		{"memory, whole (reap)", replayTimes(reap, total), larger(floor(reap, replay.FloorDisk, false), floor(reap, replay.FloorInstall, false)), "the same"},
		{"guest wakes up (clone)", phase(start, "clone"), phase(resident, "clone"), "the same guest with all of its memory there"},
		{"connection to the function", phase(start, "connect"), floor(start, floorTCP, false), "a round trip over loopback"},
		{"the function, cold (process)", phase(start, "process"), phase(resident, "process"), "the same guest with all of its memory there"},
		{"the function, cold, beside warm", phase(start, "process"), phase(warm, "process"), "the warm call"},
		{"warm call, without the function", phase(warm, "queue", "slot", "stream"), floor(start, floorHTTP, false), "a request over loopback to a server that answers at once"},
	} {
		if len(l.ours) > 0 {
			t.Rows = append(t.Rows, l.row())
		}
	}
	return Section{Tables: []Table{running, t}, Findings: found, Caveats: []string{
		"Floors are measured just before each start, or replay, that they stand beside. A floor is what the work takes alone; where two parts overlap, both cannot reach theirs on one processor.",
	}}
}

// untilRunning are the parts from the request until the vCPUs run, their sum last.
func untilRunning(all []Sample, waits bool) []limit {
	if len(all) == 0 {
		return nil
	}
	rows := []limit{{"queue and slot", phase(all, "queue", "slot"), nil, "none: made ahead"}}
	if waits {
		rows = append(rows, limit{"spawn: memory handed over", phase(all, "spawn"), nil, "none: registered ahead"})
	} else {
		spawn := phase(all, "spawn")
		rows = append(rows, limit{"spawn", spawn, floor(all, floorExec, false), "fork, exec and exit of a static program of one page"},
			limit{"", spawn, floor(all, floorProgram, false), "the VMM's program, asked for its version"})
		if bare := floor(all, floorVMM, false); len(bare) > 0 {
			rows = append(rows, limit{"", spawn, bare, "the VMM without a machine, until its control channel answers"})
		}
	}
	rows = append(rows,
		limit{"load", phase(all, "load"), floor(all, floorState, false), "device state's bytes past the page cache"},
		limit{"install", phase(all, "install"), nil, "none: overlaps what is before"},
		limit{"resume", phase(all, "resume"), floor(all, floorUnix, false), "a round trip over a Unix socket"})
	sum := limit{part: "until the vCPUs run", ours: phase(all, untilRunningPhases...), what: "the sum of the last of each"}
	names := []string{floorState, floorUnix}
	switch {
	case waits:
	case len(floor(all, floorVMM, false)) == 0:
		names = append(names, floorProgram)
	default:
		names = append(names, floorVMM)
	}
	for _, s := range all {
		least := 0.0
		for _, name := range names {
			for _, v := range floor([]Sample{s}, name, false) {
				least += v
			}
		}
		sum.floor = append(sum.floor, least)
	}
	return append(rows, sum)
}

// untilRunningPhases are those before the guest's first instruction.
var untilRunningPhases = api.PhaseNames[:6]
