package experiment

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/internal/smaps"
)

// density is ours: what a clone that idles takes of its host's memory, alone and
// beside others of its snapshot.
var density = &Experiment{
	Name: "density", Figure: "Ours", Title: "Memory of idle clones of one snapshot",
	Runs:     3,
	Question: "How much memory does an idle clone take, alone and beside nine others of its snapshot, and what do they share?",
	Points:   densityPoints,
	Measure:  measureDensity,
	Show:     showDensity,
}

// merged is for variants in which the kernel merges equal pages (KSM).
const merged = ", merged"

func densityPoints(set Settings) []Point {
	variants := []string{"mmap", "reap", "stream"}
	if mergeable() {
		variants = append(variants, "mmap"+merged, "stream"+merged)
	}
	clones := []int{1, 10}
	if set.Quick {
		clones = []int{1, 3}
	}
	var out []Point
	for run := range set.Runs {
		for _, v := range variants {
			for _, n := range clones {
				out = append(out, Point{Function: simplest(set), Variant: v, N: n, Run: run, Input: otherInput(run), Seconds: 3 + 2*float64(n)})
			}
		}
	}
	return out
}

// Clone is what an instance that idles takes of its host's memory, in bytes.
type Clone struct {
	PSS    int64 `json:"pss_bytes"`        // of its VMM's process, what is shared by those who share it
	Guest  int64 `json:"guest_pss_bytes"`  // of that, its guest's memory
	RSS    int64 `json:"rss_bytes"`        // resident
	Tables int64 `json:"page_table_bytes"` // of the process
	// Host is by how much less memory the host had available with all of the clones than
	// without, for each of them: whatever else the host did meanwhile is in it.
	Host int64 `json:"host_bytes"`
}

// measureDensity has instances started as a function's least number is, so that they
// stay, and each answer one request.
func measureDensity(ctx context.Context, l *Lab, p Point) (_ []Sample, err error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	if _, err := l.Chill(ctx, name); err != nil {
		return nil, err
	}
	policy, merges := strings.CutSuffix(p.Variant, merged)
	var k *merging
	if merges {
		if k, err = startMerging(); err != nil {
			return nil, err
		}
	}
	defer func() {
		again := l.keep(context.WithoutCancel(ctx), name, "", 0, idle)
		if again == nil {
			again = l.Quiet(ctx, name)
		}
		if k != nil {
			if stopped := k.stop(); again == nil {
				again = stopped
			}
		}
		if err == nil {
			err = again
		}
	}()
	before, err := available()
	if err != nil {
		return nil, err
	}
	if err := l.keep(ctx, name, policy, p.N, time.Hour); err != nil {
		return nil, err
	}
	samples, err := l.askEach(ctx, name, p)
	if err != nil {
		return nil, err
	}
	if k != nil {
		if err := k.settle(ctx); err != nil {
			return nil, err
		}
	}
	after, err := available()
	if err != nil {
		return nil, err
	}
	return samples, l.weigh(ctx, name, samples, (before-after)/int64(p.N))
}

// keep changes how many instances of a function stay, and how they are restored.
func (l *Lab) keep(ctx context.Context, name, policy string, n int, alive time.Duration) error {
	patch, err := json.Marshal(map[string]any{"memory_policy": policy, "min_instances": n, "keep_alive": api.Duration(alive)})
	if err != nil {
		return err
	}
	_, err = l.Client().Set(ctx, name, json.RawMessage(patch), nil)
	return err
}

// askEach waits until there are as many instances as the point says, all idle, and has each answer a
// request: as many requests at once go to one each.
func (l *Lab) askEach(ctx context.Context, name string, p Point) ([]Sample, error) {
	for {
		list, err := l.Client().Instances(ctx, name)
		if err != nil {
			return nil, err
		}
		ready := 0
		for _, i := range list {
			if i.State == api.InstanceIdle {
				ready++
			}
		}
		if ready == p.N && len(list) == p.N {
			break
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, fmt.Errorf("%d of %d instances of %s are ready: %w", ready, p.N, name, err)
		}
	}
	samples := make([]Sample, p.N)
	var group errgroup.Group
	for i := range samples {
		group.Go(func() (err error) {
			samples[i], err = l.invoke(ctx, name, invocation{input: p.Input})
			return err
		})
	}
	return samples, group.Wait()
}

// weigh looks at the memory of each instance, one of the samples'.
func (l *Lab) weigh(ctx context.Context, name string, samples []Sample, host int64) error {
	list, err := l.Client().Instances(ctx, name)
	if err != nil {
		return err
	}
	if len(list) != len(samples) {
		return fmt.Errorf("looking at the memory of %s: it has %d instances, and had %d", name, len(list), len(samples))
	}
	for i, inst := range list {
		if inst.Requests == 0 {
			return fmt.Errorf("looking at the memory of %s: instance %s has answered nothing", name, inst.ID)
		}
		all, err := smaps.Of(inst.PID)
		if err != nil {
			return err
		}
		c := &Clone{Host: host}
		for _, m := range all {
			c.PSS += m.PSS
			c.RSS += m.RSS
		}
		guest := smaps.Spanning(all, l.memory[name])
		if len(guest) == 0 {
			return fmt.Errorf("process %d has no %d bytes of memory: its guest's was not found", inst.PID, l.memory[name])
		}
		for _, m := range guest {
			c.Guest += m.PSS
		}
		if c.Tables, err = pageTables(inst.PID); err != nil {
			return err
		}
		samples[i].Clone = c
	}
	return nil
}

// further is what each clone after the first adds, given what each of n takes: what
// these have for themselves.
func further(of []Sample, n int, mib func(Sample) float64) string {
	each := func(n int) float64 {
		return stat.Median(values(where(of, func(s Sample) bool { return s.N == n }), mib))
	}
	if n < 2 {
		return "–"
	}
	return fine([]float64{(float64(n)*each(n) - each(1)) / float64(n-1)})
}

func showDensity(all []Sample) Section {
	t := Table{Name: "density", Head: []string{"policy", "clones", "PSS of each MiB", "of it the guest's MiB", "page tables MiB", "each further clone MiB", "resident MiB", "less available, of each MiB"}}
	mib := func(of func(*Clone) int64) func(Sample) float64 {
		return func(s Sample) float64 { return float64(of(s.Clone)) / (1 << 20) }
	}
	pss := mib(func(c *Clone) int64 { return c.PSS + c.Tables })
	all = where(all, func(s Sample) bool { return s.Clone != nil })
	var found []string
	for _, v := range variantsOf(all) {
		of := pick(all, "", v)
		ns := distinct(of, func(s Sample) int { return s.N })
		slices.Sort(ns)
		for _, n := range ns {
			at := where(of, func(s Sample) bool { return s.N == n })
			t.Rows = append(t.Rows, []string{v, itoa(n), fine(values(at, mib(func(c *Clone) int64 { return c.PSS }))),
				fine(values(at, mib(func(c *Clone) int64 { return c.Guest }))),
				fine(values(at, mib(func(c *Clone) int64 { return c.Tables }))), further(of, n, pss), fine(values(at, mib(func(c *Clone) int64 { return c.RSS }))),
				fine(values(at, mib(func(c *Clone) int64 { return c.Host })))})
			if n == ns[len(ns)-1] {
				found = append(found, fmt.Sprintf("An idle clone among %d takes %s MiB under %s, page tables included.", n, number(stat.Median(values(at, pss))), v))
			}
		}
	}
	return Section{Tables: []Table{t}, Findings: found, Caveats: []string{
		"What each further clone takes is what it does not share: it is worked out from what one takes, and n, page tables included.",
		"PSS counts a page that several processes map as a part of one for each; pages of the page cache that nobody maps are in none of the figures.",
	}}
}
