package experiment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/link"
)

// remote is ours: cold starts on nodes that have nothing of a snapshot but an object store.
var remote = &Experiment{
	Name: "remote", Figure: "Ours", Title: "Cold starts from an object store",
	Question: "How much longer does a cold start take on a node that has to fetch the snapshot, what of it before the first response, and what do the functions take in the store?",
	Unavailable: func(set Settings) string {
		return set.WithoutStore
	},
	Runs:    5,
	Points:  remotePoints,
	Measure: measureRemote,
	Show:    showRemote,
}

// remoteLinks are those that the store is behind.
var remoteLinks = []struct {
	name string // in variants
	link.Link
}{
	{"1 ms", link.Link{RTT: time.Millisecond, Rate: 10e9 / 8}},
	{"10 ms", link.Link{RTT: 10 * time.Millisecond, Rate: 1e9 / 8}},
}

// A variant of remote is a policy, where the snapshot is, and what else is there, with commas between.
const (
	remoteStored = "stored"      // no start: what a push stores
	remoteLocal  = "local"       // all is on the node's disk, nothing in the page cache
	withDisk     = "disk here"   // the root disk is on the node, as where a function has just been deployed
	withCache    = "cached base" // the node's cache of chunks has another function of the same base
)

// remoteNodes is how many nodes start at once.
func remoteNodes(set Settings) int {
	if set.Quick {
		return 4
	}
	return 16
}

// remotePoints has the policies from everywhere, and stream from more places.
func remotePoints(set Settings) []Point {
	policies := set.Policies
	if len(policies) == 0 {
		policies = []string{"mmap", "lazy", "reap", "stream"}
		if set.Quick {
			policies = []string{"mmap", "reap", "stream"}
		}
	}
	var variants []string
	for _, p := range policies {
		variants = append(variants, variantOf(p, remoteLocal))
		for _, l := range remoteLinks {
			variants = append(variants, variantOf(p, l.name))
		}
	}
	var atOnce []string
	for _, l := range remoteLinks {
		variants = append(variants, variantOf("stream", l.name, withDisk), variantOf("stream", l.name, withCache))
		atOnce = append(atOnce, variantOf("stream", l.name, withDisk))
	}
	var out []Point
	for _, f := range set.Functions { // in the order in which they are pushed
		out = append(out, Point{Function: f, Variant: remoteStored, Seconds: 15})
	}
	n := remoteNodes(set)
	for run := range set.Runs {
		one := set
		one.Runs = 1
		for _, p := range turns(one, set.Functions, variants) {
			if strings.HasSuffix(p.Variant, withCache) && siblingOf(p.Function) == "" {
				continue
			}
			p.Run, p.Input = run, otherInput(run)
			p.Seconds += 5
			out = append(out, p)
		}
		for _, v := range append([]string{variantOf("stream", remoteLocal)}, atOnce...) {
			out = append(out, Point{Function: simplest(set), Variant: v, N: n, Run: run, Input: otherInput(run), Seconds: 5 * float64(n)})
		}
	}
	return out
}

func variantOf(parts ...string) string { return strings.Join(parts, ", ") }

// Nodes are daemons on this machine that share an object store with the lab's own, each with its own data and
// behind a link. cmd/skep has them. Its methods are called one after the other.
type Nodes interface {
	// Push puts the newest snapshot of a function of the lab's own daemon into the store.
	Push(ctx context.Context, function string) (api.PushedSnapshot, error)
	// Start starts a node, whose daemon is new, and which knows the functions.
	Start(ctx context.Context, s NodeSpec) (Node, error)
	// Speed measures a link.
	Speed(ctx context.Context, l link.Link) (LinkSpeed, error)
}

// NodeSpec says what a node is to have.
type NodeSpec struct {
	ID       int // of those at once
	Link     link.Link
	Local    bool // all of its functions' snapshots are there
	Disk     bool // their root disks are
	CacheMiB int  // of chunks, empty at first
	Deployed []Deployed
}

// Deployed is one of skep's functions as a function.
type Deployed struct {
	Builtin  string
	Function api.Function
}

// Node is a daemon with an object store.
type Node interface {
	Host
	Stats() api.StoreStats
	Close() error
}

// LinkSpeed is what a link was measured to be.
type LinkSpeed struct {
	link.Link
	Name    string        `json:"name"`       // in variants
	Request time.Duration `json:"request_ns"` // for one byte, over a connection that stands
	MBps    float64       `json:"mb_per_s"`   // four ranges of 4 MiB at once
}

// Remote says what was had of the object store for a start, or given to it.
type Remote struct {
	Link *LinkSpeed `json:"link,omitempty"` // nil: it was not needed
	// Until the first response was over: bytes as stored, requests to the store, guests' waits for pages.
	Fetched  int64         `json:"fetched_bytes"`
	Requests int64         `json:"requests"`
	Waits    int64         `json:"waits"`
	Waited   time.Duration `json:"waited_ns"`
	Cached   int64         `json:"cached_chunks,omitempty"` // that the node's cache had
	Total    int64         `json:"total_bytes"`             // until the snapshot and its root disk were whole
	Whole    time.Duration `json:"whole_ns"`                // from the request until the snapshot was

	Pushed *api.PushedSnapshot `json:"pushed,omitempty"` // it was no start
	Guest  int64               `json:"guest_bytes,omitempty"`
}

func measureRemote(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	if l.Nodes == nil {
		return nil, errors.New("no object store")
	}
	name, err := l.push(ctx, p.Function)
	if err != nil {
		return nil, err
	}
	if p.Variant == remoteStored {
		done := l.pushed[name]
		return []Sample{{Time: time.Now().UTC(), Remote: &Remote{Pushed: &done, Guest: l.memory[name]}}}, nil
	}
	parts := strings.Split(p.Variant, ", ")
	policy, from, more := parts[0], parts[1], strings.Join(parts[2:], ", ")
	spec := NodeSpec{Local: from == remoteLocal, Disk: more == withDisk}
	var speed *LinkSpeed
	for _, at := range remoteLinks {
		if at.name == from {
			spec.Link = at.Link
			if speed, err = l.speed(ctx, at.name, at.Link); err != nil {
				return nil, err
			}
		}
	}
	if (speed == nil) != spec.Local {
		return nil, fmt.Errorf("no link %q", from)
	}
	if err := l.know(&spec, p.Function, name); err != nil {
		return nil, err
	}
	beside := ""
	if more == withCache {
		other := siblingOf(p.Function)
		if beside, err = l.push(ctx, other); err == nil {
			err = l.know(&spec, other, beside)
		}
		if err != nil {
			return nil, err
		}
		spec.CacheMiB = 1024
	}
	return l.startOn(ctx, spec, max(p.N, 1), func(ctx context.Context, node *Lab) (Sample, error) {
		if beside != "" {
			if _, err := node.startAway(ctx, beside, "stream", 1); err != nil {
				return Sample{}, fmt.Errorf("starting what the cache is to have: %w", err)
			}
		}
		s, err := node.startAway(ctx, name, policy, p.Input)
		if s.Remote != nil {
			s.Remote.Link, s.Remote.Guest = speed, l.memory[name]
		}
		return s, err
	})
}

// siblingOf is another function on the same base; "": there is none.
func siblingOf(function string) string {
	switch {
	case !slices.Contains(functions.Bench(), function):
		return ""
	case function == "helloworld":
		return "pyaes"
	default:
		return "helloworld"
	}
}

// push has a function's snapshot in the store, with what its first input touches, and returns the function's name.
func (l *Lab) push(ctx context.Context, subject string) (string, error) {
	name, err := l.Function(ctx, subject, "-away", nil)
	if err != nil {
		return "", err
	}
	if _, there := l.pushed[name]; there {
		return name, nil
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return "", err
	}
	if err := l.Quiet(ctx, name); err != nil {
		return "", err
	}
	done, err := l.Nodes.Push(ctx, name)
	if err != nil {
		return "", fmt.Errorf("pushing %s: %w", name, err)
	}
	l.pushed[name] = done
	return name, nil
}

// know has a node know a function of the lab's.
func (l *Lab) know(spec *NodeSpec, subject, name string) error {
	f, err := l.settings(subject, name)
	spec.Deployed = append(spec.Deployed, Deployed{subject, f})
	return err
}

// speed measures a link, once.
func (l *Lab) speed(ctx context.Context, name string, at link.Link) (*LinkSpeed, error) {
	if l.speeds[at] == nil {
		s, err := l.Nodes.Speed(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("measuring the link of %v: %w", at, err)
		}
		s.Name, s.Link = name, at
		l.speeds[at] = &s
	}
	return l.speeds[at], nil
}

// settled is how long new daemons are left alone before a start: they make network slots ahead.
const settled = 500 * time.Millisecond

// startOn has n nodes, and measures on all of them at once.
func (l *Lab) startOn(ctx context.Context, spec NodeSpec, n int, measure func(context.Context, *Lab) (Sample, error)) (_ []Sample, err error) {
	var nodes []Node
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.Close())
		}
	}()
	for i := range n {
		spec.ID = i
		node, err := l.Nodes.Start(ctx, spec)
		if err != nil {
			return nil, fmt.Errorf("starting a node: %w", err)
		}
		nodes = append(nodes, node)
	}
	// A root disk whose times are new is read once, and those of all nodes are when another node gets it.
	for _, node := range nodes {
		for _, d := range spec.Deployed {
			if _, err := node.Image(d.Function.Name); err != nil && !errors.Is(err, image.ErrNotFound) {
				return nil, fmt.Errorf("the root disk of a node: %w", err)
			}
		}
	}
	if err := sleep(ctx, settled); err != nil {
		return nil, err
	}
	samples := make([]Sample, n)
	var group errgroup.Group
	for i, node := range nodes {
		group.Go(func() (err error) {
			samples[i], err = measure(ctx, NewLab(node, l.Set, l.log))
			return err
		})
	}
	return samples, group.Wait()
}

// startAway makes a cold start on a node that may have to fetch what it starts from, and waits until all of that is
// there. The lab is the node's.
func (l *Lab) startAway(ctx context.Context, name, policy string, input int) (Sample, error) {
	node := l.Host.(Node)
	cache, err := l.Chill(ctx, name)
	if err != nil {
		return Sample{}, err
	}
	before := node.Stats()
	began := time.Now()
	watching, stop := context.WithCancel(ctx)
	arrived := make(chan time.Duration, 1)
	go func() { arrived <- untilWhole(watching, node, began) }()
	var r Remote
	s, err := l.invoke(ctx, name, invocation{start: api.StartRestore, policy: policy, input: input, answered: func() {
		now := node.Stats()
		r.Fetched, r.Requests, r.Cached = now.Fetched-before.Fetched, now.Requests-before.Requests, now.CacheHits-before.CacheHits
		r.Waits, r.Waited = now.Waits-before.Waits, now.Waited-before.Waited
	}})
	s.Cache, s.Remote = cache, &r
	for err == nil && node.Stats().Arriving > 0 {
		err = sleep(ctx, 5*time.Millisecond)
	}
	stop()
	r.Whole = <-arrived
	if err == nil {
		err = l.Quiet(ctx, name)
	}
	if err == nil {
		err = l.awaitDisk(ctx, name)
	}
	r.Total = node.Stats().Fetched - before.Fetched
	if err != nil {
		return s, err
	}
	if _, err := l.Source(ctx, name); err != nil {
		return s, fmt.Errorf("after a start from the object store: %w", err)
	}
	return s, nil
}

// awaitDisk waits until the function's root disk, which may come late, is here, for a minute at most.
func (l *Lab) awaitDisk(ctx context.Context, name string) error {
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := l.Image(name)
		if !errors.Is(err, image.ErrNotFound) {
			return err
		}
		if sleep(within, 5*time.Millisecond) != nil {
			return context.Cause(ctx)
		}
	}
}

// untilWhole returns how long after a moment a snapshot that is on its way was there; 0: none was on its way until ctx
// ended.
func untilWhole(ctx context.Context, node Node, began time.Time) time.Duration {
	for seen := false; ; {
		switch arriving := node.Stats().Arriving > 0; {
		case arriving:
			seen = true
		case seen:
			return time.Since(began)
		}
		if sleep(ctx, 2*time.Millisecond) != nil {
			if seen && node.Stats().Arriving == 0 {
				return time.Since(began)
			}
			return 0
		}
	}
}
