package experiment

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
	"github.com/skep-dev/skep/memory/workingset"
)

// native is the paper's figure 8 where emulation has no part in it: what a guest
// touches was recorded in real microVMs, and is touched again by a process, with
// the function's own work between.
var native = &Experiment{
	Name: "native", Figure: "Figure 8 without emulation", Title: "All functions at native speed",
	Question: "How much faster is a cold start with a prefetched working set where no instruction is emulated?",
	Unavailable: func(Settings) string {
		if err := loopDevices(); err != nil {
			return "the functions' own work is measured in a root that is mounted from their image: " + err.Error()
		}
		return ""
	},
	Points:  nativePoints,
	Measure: measureNative,
	Show:    showNative,
}

// What a native point measures; a variant is a policy and one of these.
const (
	nativePlain = ""                // a cold start, VMM start and own work included, with the input that was recorded
	nativeReady = ", ready process" // the same where a VMM's process waits
	nativeOther = ", other input"   // with an input that was not recorded
	nativeSlow  = ", slow disk"
	nativeAlone = ", memory alone" // touches as fast as they come, beside the floors
)

var nativeKinds = []string{nativeReady, nativeOther, nativeSlow, nativeAlone}

// nativeVariant takes a variant apart.
func nativeVariant(v string) (policy, kind string) {
	for _, kind := range nativeKinds {
		if policy, ok := strings.CutSuffix(v, kind); ok {
			return policy, kind
		}
	}
	return v, nativePlain
}

// slowRuns are those behind the slow disk, where little varies.
const slowRuns = 3

func nativePoints(set Settings) []Point {
	plain := set.Policies
	if len(plain) == 0 {
		plain = []string{"mmap", replay.MmapHuge, "lazy", "parallel", "wsfile", "reap", "stream", "resident"}
	}
	compared := []string{"mmap", "reap", "stream"}
	_, unthrottled := findThrottle()
	var out []Point
	for run := range set.Runs {
		variants := slices.Clone(plain)
		for _, p := range compared[1:] {
			variants = append(variants, p+nativeReady)
		}
		kinds := []string{nativeOther, nativeAlone}
		if run < slowRuns && unthrottled == nil {
			kinds = append(kinds, nativeSlow)
		}
		for _, kind := range kinds {
			for _, p := range compared {
				variants = append(variants, p+kind)
			}
		}
		for _, f := range set.Functions {
			for i, v := range variants {
				p := Point{Function: f, Variant: v, Run: run, Input: 1, Seconds: 0.5 + 0.2*warmSeconds[f]}
				switch _, kind := nativeVariant(v); {
				case kind == nativeOther:
					p.Input = otherInput(run)
				case kind == nativeSlow:
					p.Seconds += 2
				}
				if run == 0 && i == 0 {
					p.Seconds += Inputs * (3 + 2*warmSeconds[f]) // recording
				}
				out = append(out, p)
			}
		}
	}
	return out
}

// Native says what a replayed cold start was composed of, beside what the replay
// measured.
type Native struct {
	// VMM is until guest memory is there to be filled: the median of queue, slot,
	// spawn and load over the real cold starts that recorded the function.
	VMM time.Duration `json:"vmm_ns"`
	// Work is the function's own, of a warm call of its server on this machine.
	Work time.Duration `json:"own_work_ns"`
}

// recordedFault is what a page that was served while recording added to the times
// of a trace, as package memory has it.
const recordedFault = 20 * time.Microsecond

// atNativeSpeed is a trace whose times are those of a guest that is not emulated:
// the function's own work, spread as the guest's time was when it was recorded,
// and for each page what serving it adds.
func atNativeSpeed(t *workingset.Trace, work, fault time.Duration) *workingset.Trace {
	gaps := make([]float64, len(t.Touches))
	sum, last := 0.0, time.Duration(0)
	for i, touch := range t.Touches {
		gaps[i] = float64(max(touch.After-last-recordedFault, 0))
		sum, last = sum+gaps[i], touch.After
	}
	out := &workingset.Trace{Of: t.Of, Touches: slices.Clone(t.Touches)}
	done := 0.0
	for i := range out.Touches {
		if sum > 0 {
			done += gaps[i] / sum
		} else {
			done = float64(i+1) / float64(len(gaps))
		}
		out.Touches[i].After = time.Duration(done*float64(work)) + time.Duration(i)*fault
	}
	return out
}

func measureNative(ctx context.Context, l *Lab, p Point) (_ []Sample, err error) {
	r, err := l.recorded(ctx, p.Function)
	if err != nil {
		return nil, err
	}
	policy, kind := nativeVariant(p.Variant)
	o := replay.Options{
		Sources: []memory.Source{r.source}, Touched: []*workingset.Trace{r.touched(p.Input)}, Table: l.policies(),
		Policies: []string{policy}, Runs: 1, Cold: l.Set.Cold != ColdNone, NoFloors: true, Work: true, Start: r.VMM,
	}
	s := Sample{Time: time.Now().UTC(), Replayed: true}
	switch kind {
	case nativeReady:
		o.Start = r.Ready
	case nativeAlone:
		o.Start, o.Work, o.NoFloors = 0, false, false
	case nativeSlow:
		slow, err := slowDown(r.source.Path, l.Set.Storage)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, slow.end()) }()
		s.Storage = &slow.Storage
	}
	if o.Cold {
		c, err := DropCache([]string{r.source.Path, filepath.Join(r.source.Dir, workingset.SetFile)})
		if err != nil {
			return nil, err
		}
		c.Dropped, s.Cache = l.Set.Cold, &c
	}
	rep, err := replay.Run(ctx, o)
	if err != nil {
		return nil, err
	}
	s.Replay, s.Floors = &rep.Samples[0], rep.Floors
	s.Native = &Native{VMM: o.Start}
	if o.Work {
		s.Native.Work = r.Work[p.Input]
	}
	return []Sample{s}, nil
}
