package experiment

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	loader "github.com/skep-dev/skep/load"
	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/scale/sim"
)

// scaling is ours: what scaling policies cost and save, on microVMs at a small scale and
// simulated at a large one, with what starts take here.
var scaling = &Experiment{
	Name: scalingName, Figure: "Load", Title: "Scaling policies: cold starts against memory held",
	Question:  "How many cold starts, and what tail, for how much memory, by scaling policy and by what a start takes?",
	Functions: []string{scaledFunction},
	Runs:      1,
	Points:    scalingPoints,
	Measure:   measureScaling,
	Show:      showScaling,
}

// ScalingLoad is how much load the experiment scaling makes. Zero fields are its defaults.
type ScalingLoad struct {
	Policies      []string `json:"policies,omitempty"`       // kinds of package scale; empty: all
	LiveFunctions int      `json:"live_functions,omitempty"` // 4
	LiveMinutes   int      `json:"live_minutes,omitempty"`   // of a trace: 60
	Speed         float64  `json:"speed,omitempty"`          // how many times as fast they pass: 30
	Functions     int      `json:"functions,omitempty"`      // simulated: 1000
	Minutes       int      `json:"minutes,omitempty"`        // of those: 360
	Rate          float64  `json:"rate,omitempty"`           // times the published: 0.2
	Seed          uint64   `json:"seed,omitempty"`
}

func (s ScalingLoad) withDefaults(quick bool) ScalingLoad {
	d := ScalingLoad{LiveFunctions: 4, LiveMinutes: 60, Speed: 30, Functions: 1000, Minutes: 360, Rate: 0.2}
	if quick {
		d = ScalingLoad{LiveFunctions: 2, LiveMinutes: 30, Speed: 60, Functions: 200, Minutes: 120, Rate: 0.1}
		d.Policies = []string{"fixed", "break-even"}
	}
	if len(s.Policies) == 0 {
		s.Policies = d.Policies
	}
	if len(s.Policies) == 0 {
		s.Policies = scale.Names()
	}
	for _, v := range []struct{ have, def *int }{{&s.LiveFunctions, &d.LiveFunctions}, {&s.LiveMinutes, &d.LiveMinutes}, {&s.Functions, &d.Functions}, {&s.Minutes, &d.Minutes}} {
		if *v.have == 0 {
			*v.have = *v.def
		}
	}
	if s.Speed == 0 {
		s.Speed = d.Speed
	}
	if s.Rate == 0 {
		s.Rate = d.Rate
	}
	if s.Seed == 0 {
		s.Seed = 1
	}
	return s
}

// Check says what cannot be measured so.
func (s ScalingLoad) Check() error {
	for _, p := range s.Policies {
		if !slices.Contains(scale.Names(), p) {
			return fmt.Errorf("no scaling policy %q: there are %s", p, strings.Join(scale.Names(), ", "))
		}
	}
	for name, v := range map[string]int{"live functions": s.LiveFunctions, "minutes of the live trace": s.LiveMinutes, "simulated functions": s.Functions, "simulated minutes": s.Minutes} {
		if v < 0 || v > 10_000_000 {
			return fmt.Errorf("%d %s: want 1 or more", v, name)
		}
	}
	if !(s.Speed >= 0 && s.Speed <= 1000 && s.Rate >= 0 && s.Rate <= 1000) {
		return fmt.Errorf("speed is %v and rate %v: want more than 0, at most 1000", s.Speed, s.Rate)
	}
	return nil
}

const (
	scalingName    = "scaling"
	scaledFunction = "hello"
	scaledMost     = 4 // instances of each live function
	scaledTimeout  = 5 * time.Minute

	costsVariant = "costs"
	livePart     = "live "  // + policy and start
	twinPart     = "twin "  // the same, simulated
	largePart    = "large " // a kind of policy, and a start
)

// scalingStarts are the kinds of start that are compared.
var scalingStarts = []string{"boot", "mmap", "reap", "stream"}

// scalingBase is what the others are measured against: what most providers do.
const scalingBase = "fixed:keep-alive=10m"

// scalingKinds are the policies with what they are simulated with at large, and live, where
// their own times pass as fast as the trace's. The first of large is what is usual.
func scalingKinds(speed float64) map[string]struct {
	large []string
	live  string
} {
	short := func(d time.Duration) time.Duration {
		return max(time.Duration(float64(d)/speed), time.Second).Round(100 * time.Millisecond)
	}
	return map[string]struct {
		large []string
		live  string
	}{
		"none": {[]string{"none"}, "none"},
		"fixed": {[]string{scalingBase, "fixed:keep-alive=5s", "fixed:keep-alive=20s", "fixed:keep-alive=1m", "fixed:keep-alive=3m", "fixed:keep-alive=20m", "fixed:keep-alive=1h"},
			fmt.Sprintf("fixed:keep-alive=%v", short(10*time.Minute))},
		"kpa": {[]string{"kpa", "kpa:scale-to-zero-pod-retention-period=3m", "kpa:scale-to-zero-pod-retention-period=10m", "kpa:scale-to-zero-pod-retention-period=30m"},
			fmt.Sprintf("kpa:stable-window=%v,scale-to-zero-grace-period=%v", max(6*time.Second, short(time.Minute)), short(30*time.Second))},
		"hybrid": {[]string{"hybrid", "hybrid:range=1h", "hybrid:tail=0.9", "hybrid:range=1h,tail=0.9"},
			fmt.Sprintf("hybrid:range=%v,bin=%v", max(time.Minute, short(4*time.Hour)), short(time.Minute))},
		"greedy-dual": {[]string{"greedy-dual"}, "greedy-dual"}, // by the node's memory: scalingNodes
		"break-even": {[]string{"break-even", "break-even:price=64", "break-even:price=512", "break-even:price=2048", "break-even:price=131072", "break-even:price=1048576"},
			fmt.Sprintf("break-even:price=%.0f", max(1, 16384/speed))},
	}
}

// scalingNodes are what memory there is for greedy-dual, which keeps all while there is
// some: times what one instance of each function takes.
var scalingNodes = []float64{0.25, 0.0625, 0.125, 0.5, 1}

func scalingPoints(set Settings) (points []Point) {
	load := set.Scaling.withDefaults(set.Quick)
	kinds := scalingKinds(load.Speed)
	length := float64(load.LiveMinutes) * 60 / load.Speed
	for run := range set.Runs {
		add := func(variant string, seconds float64) {
			points = append(points, Point{Function: scaledFunction, Variant: variant, Run: run, Seconds: seconds})
		}
		add(costsVariant, 15*float64(costsRounds(set)))
		var live []string
		for _, k := range load.Policies {
			live = append(live, kinds[k].live+" stream")
		}
		for _, start := range scalingStarts[:3] {
			if slices.Contains(load.Policies, "fixed") {
				live = append(live, kinds["fixed"].live+" "+start)
			}
		}
		deployed := map[string]bool{}
		for _, v := range live {
			seconds := length + 15
			if start := v[strings.LastIndex(v, " "):]; !deployed[start] {
				deployed[start] = true
				seconds += deploySeconds * float64(load.LiveFunctions)
			}
			add(livePart+v, seconds)
		}
		for _, v := range live {
			add(twinPart+v, 1)
		}
		for _, k := range load.Policies {
			for _, start := range scalingStarts {
				add(largePart+k+" "+start, 2*float64(len(kinds[k].large)))
			}
		}
	}
	return points
}

// Scaled is what the experiment scaling measures: a call, what instances held at a moment,
// or what a simulation came to.
type Scaled struct {
	Call      *loader.Sample `json:"call,omitempty"`
	MemoryMiB float64        `json:"memory_mib,omitempty"` // of an instance of the call's function

	Held *loader.Memory `json:"held,omitempty"`

	Result *sim.Result `json:"result,omitempty"`
	// Own: its starts took what they did in the live run, and not what was measured alone.
	Own bool `json:"own,omitempty"`
}

func measureScaling(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	rest := func(part string) (policy, start string, ok bool) {
		text, ok := strings.CutPrefix(p.Variant, part)
		policy, start, _ = strings.Cut(text, " ")
		return policy, start, ok
	}
	if policy, start, ok := rest(livePart); ok {
		return l.scaleLive(ctx, policy, start)
	}
	if policy, start, ok := rest(twinPart); ok {
		return l.scaleTwin(ctx, p.Run, policy, start)
	}
	if kind, start, ok := rest(largePart); ok {
		return l.scaleLarge(ctx, p.Run, kind, start)
	}
	return l.scalingCosts(ctx)
}

// workPath is what of the function is called: it waits for so long. So calls do not contend
// for the processors of a small machine; starts do.
func workPath(ms string) string { return "/work?idle=1&ms=" + ms }

func costsRounds(set Settings) int {
	if set.Quick {
		return 2
	}
	return 6
}

// inCache is what samples' Cache says of starts whose files stay in the page cache, as they do
// between starts of a function that is called often.
const inCache = ColdNone

// scalingCosts measures what starts take when nothing else happens: in turns, with their
// files in the page cache and without, and warm calls.
func (l *Lab) scalingCosts(ctx context.Context) (samples []Sample, err error) {
	name, err := l.Function(ctx, scaledFunction, "-costs", nil)
	if err != nil {
		return nil, err
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	call := func(i invocation, c *Cache) error {
		i.path = workPath("0")
		s, err := l.invoke(ctx, name, i)
		s.Cache = c
		samples = append(samples, s)
		return err
	}
	for range costsRounds(l.Set) {
		for _, dropped := range []bool{true, false} {
			for _, start := range scalingStarts {
				c := &Cache{Dropped: inCache, Before: -1, Left: -1}
				if err = l.Quiet(ctx, name); err == nil && dropped {
					c, err = l.Chill(ctx, name)
				}
				i := invocation{start: api.StartRestore, policy: start}
				if start == "boot" {
					i = invocation{start: api.StartBoot}
				}
				if err == nil {
					err = call(i, c)
				}
				if err != nil {
					return nil, fmt.Errorf("what a start by %s takes: %w", start, err)
				}
			}
		}
		_, err = l.invoke(ctx, name, invocation{path: workPath("0")}) // so that one is there
		if err == nil {
			err = call(invocation{start: api.StartWarm}, nil)
		}
		if err != nil {
			return nil, fmt.Errorf("what a warm call takes: %w", err)
		}
	}
	return samples, nil
}

// costs are those that were measured, of starts whose files were cached or were not.
func (l *Lab) costs(run int, of string) (*sim.Costs, error) {
	var records []api.Invocation
	for _, s := range l.measured.Samples {
		if s.Experiment == scalingName && s.Variant == costsVariant && s.Run == run && (s.Cache == nil || s.Cache.Dropped == of) {
			records = append(records, *s.Record)
		}
	}
	if len(records) == 0 {
		return nil, errors.New("what starts take was not measured yet: run it again")
	}
	return sim.FromRecords(records)
}

// liveTrace is a piece of a made-up trace: a few functions that are called now and then.
func (l *Lab) liveTrace() (*trace.Trace, error) {
	load := l.Set.Scaling.withDefaults(l.Set.Quick)
	whole, err := trace.Generator{Functions: max(400, 20*load.LiveFunctions), Minutes: load.LiveMinutes, Seed: load.Seed}.Make()
	if err != nil {
		return nil, err
	}
	some, err := whole.Where(func(f *trace.Function) bool {
		return f.Calls >= 3 && f.Calls <= int64(2*load.LiveMinutes) && f.Duration[len(f.Duration)-1] < 2
	})
	if err != nil {
		return nil, err
	}
	sample, _, err := some.Sample(load.LiveFunctions, load.Seed)
	return sample, err
}

// scaleLive calls functions by the live trace under a policy.
func (l *Lab) scaleLive(ctx context.Context, policy, start string) (samples []Sample, err error) {
	tr, err := l.liveTrace()
	if err != nil {
		return nil, fmt.Errorf("making the live trace: %w", err)
	}
	load := l.Set.Scaling.withDefaults(l.Set.Quick)
	plan, err := loader.OfTrace(tr, "made up", load.Speed, load.Seed)
	if err != nil {
		return nil, err
	}
	mib := map[string]float64{}
	for i := range plan.Functions {
		size := scaledMiB(tr.Functions[i].MemoryMiB)
		if plan.Functions[i], err = l.scaledFunction(ctx, start, i, size); err != nil {
			return nil, err
		}
		mib[plan.Functions[i]] = float64(size)
	}
	version, err := l.Client().Version(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "skep-scaling-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := l.scaleBy(ctx, plan.Functions, policy); err != nil {
		return nil, err
	}
	report, err := loader.Run(ctx, loader.Options{Plan: plan, Dir: dir, Timeout: scaledTimeout, URL: "http://" + version.Gateway + "/function/{function}" + workPath("{ms}"),
		Memory: func(ctx context.Context) (m loader.Memory, err error) {
			instances, err := l.Client().Instances(ctx, "")
			for _, i := range instances {
				if size, ok := mib[i.Function]; ok {
					m.Instances++
					m.MiB += size
				}
			}
			return m, err
		}})
	if err := errors.Join(err, l.scaleBy(ctx, plan.Functions, "none")); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	for _, c := range report.Samples() {
		samples = append(samples, Sample{Time: now, Scaled: &Scaled{Call: &c, MemoryMiB: mib[plan.Functions[c.Function]]}})
	}
	for _, m := range report.Memory() {
		samples = append(samples, Sample{Time: now, Scaled: &Scaled{Held: &m}})
	}
	return samples, nil
}

// scaledMiB is the memory of a guest for a function that takes so much.
func scaledMiB(mib float64) int { return max(128, 64*int(math.Ceil((mib+64)/64))) }

// scaledFunction deploys one of the live functions for a kind of start, each with its own
// snapshot, and has it start twice, so that what is learned of it is there.
func (l *Lab) scaledFunction(ctx context.Context, start string, i, mib int) (string, error) {
	suffix := fmt.Sprintf("-%s-%d", start, i)
	if name := nameOf(scaledFunction) + suffix; l.deployed[name] {
		return name, nil
	}
	name, err := l.Function(ctx, scaledFunction, suffix, func(f *api.Function) {
		f.MemoryMiB, f.MaxInstances, f.QueueLimit, f.Scaling = mib, scaledMost, 100_000, "none"
		f.Timeout = api.Duration(scaledTimeout)
		if start == "boot" {
			f.Snapshot.Off = true
		} else {
			f.MemoryPolicy = start
		}
	})
	for range 2 {
		if err == nil {
			_, err = l.invoke(ctx, name, invocation{path: workPath("0")})
		}
		if err == nil {
			err = l.Quiet(ctx, name)
		}
	}
	return name, err
}

// scaleBy puts functions under a policy, when none has an instance any more.
func (l *Lab) scaleBy(ctx context.Context, names []string, policy string) error {
	for _, to := range slices.Compact([]string{"none", policy}) {
		for _, name := range names {
			if _, err := l.Client().Set(ctx, name, map[string]any{"scaling": to}, nil); err != nil {
				return fmt.Errorf("putting %s under %s: %w", name, to, err)
			}
		}
		if to == "none" {
			for _, name := range names {
				if err := l.Quiet(ctx, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// policyInk is the colour of a scaling policy, the same in every figure.
func policyInk(kind string) chart.Ink {
	inks := map[string]chart.Ink{"none": chart.Grey, "fixed": chart.Blue, "kpa": chart.Sky, "hybrid": chart.Green, "greedy-dual": chart.Purple, "break-even": chart.Orange}
	if ink, ok := inks[kind]; ok {
		return ink
	}
	return chart.Yellow
}

// kindOf is that of a policy as it is written.
func kindOf(policy string) string {
	if i := strings.IndexAny(policy, ": "); i >= 0 {
		return policy[:i]
	}
	return policy
}
