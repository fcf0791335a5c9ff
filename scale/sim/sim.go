// Package sim runs scaling policies in virtual time: a trace's invocations meet the
// same policies that decide live, on a cluster of nodes whose starts take what starts
// were measured to take. `skep simulate` calls it.
//
// Memory is bounded: some 200 bytes a function and its policy's own (TestMemoryIsBounded), 100 an instance, 16
// a request that waits, two minutes of invocations, and the trace. A run is a function of
// its configuration: the same gives the same.
package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/scale"
)

// Config is one run.
type Config struct {
	Trace  *trace.Trace
	Policy scale.Spec
	Start  string // what starts are: a name in Costs.Starts
	Costs  *Costs

	Nodes     int       // default 1
	NodeMiB   int64     // memory of one node for instances; 0: no limit
	Placement Placement // default Spread
	Bases     int       // images that functions' snapshots are on; default 8, 64 at most

	KeepAlive    time.Duration // of functions, for policies that have none; default 1m
	MinInstances int           // of each function
	MaxInstances int           // of each function; default 1000
	Concurrency  int           // requests at once in an instance; default 1
	Utilization  float64       // share of it beyond which others are started; default 1
	QueueTimeout time.Duration // for how long a request waits; default 1m
	Seed         uint64
	Until        time.Duration // when memory is counted no longer; default: the end of the trace

	Progress func(minute, of int) // called for each minute; nil is allowed
}

// Placement says on which node an instance starts, of those that have room.
type Placement string

// Placements.
const (
	Spread        Placement = "spread"         // with the most free memory
	Pack          Placement = "pack"           // with the least
	SnapshotAware Placement = "snapshot-aware" // where the function's snapshot is; else with the most free memory
	ChunkAware    Placement = "chunk-aware"    // where most of its snapshot's chunks are, be it of another on the same base; else with the most free memory
)

// Placements lists them.
var Placements = []Placement{Spread, Pack, SnapshotAware, ChunkAware}

func (c *Config) withDefaults() error {
	switch {
	case c.Trace == nil || c.Costs == nil:
		return fmt.Errorf("a simulation needs a trace and costs")
	case c.Nodes < 0 || c.Nodes > 100000:
		return fmt.Errorf("%d nodes: want 1 to 100000", c.Nodes)
	case c.NodeMiB < 0 || c.MinInstances < 0 || c.Concurrency < 0 || c.MaxInstances < 0 || c.Until < 0 || !(c.Utilization >= 0 && c.Utilization <= 1):
		return fmt.Errorf("node memory, instances, concurrency and an end cannot be negative, and a utilization is at most 1")
	case c.Bases < 0 || c.Bases > maxBases:
		return fmt.Errorf("%d bases: want 1 to %d", c.Bases, maxBases)
	case c.Placement != "" && !slices.Contains(Placements, c.Placement):
		return fmt.Errorf("placement is %q: want one of %v", c.Placement, Placements)
	}
	if _, ok := c.Costs.Starts[c.Start]; !ok {
		return fmt.Errorf("there are no costs of starts %q (there are %v)", c.Start, c.Costs.Names())
	}
	if c.Nodes == 0 {
		c.Nodes = 1
	}
	if c.Bases == 0 {
		c.Bases = 8
	}
	if c.Placement == "" {
		c.Placement = Spread
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = time.Minute
	}
	if c.MaxInstances == 0 {
		c.MaxInstances = 1000
	}
	c.MinInstances = min(c.MinInstances, c.MaxInstances)
	c.Concurrency = max(1, c.Concurrency)
	if c.QueueTimeout == 0 {
		c.QueueTimeout = time.Minute
	}
	return nil
}

// Run runs the trace to its end and until its last request is answered.
func Run(ctx context.Context, c Config) (*Result, error) {
	if err := c.withDefaults(); err != nil {
		return nil, fmt.Errorf("simulating: %w", err)
	}
	began := time.Now()
	w := newWorld(&c)
	minutes, stop := generate(ctx, &c)
	defer stop()
	for in := range minutes {
		for i := range in {
			w.until(int64(in[i].At))
			w.arrive(&in[i])
		}
		w.minute++
		w.until(int64(w.minute) * int64(time.Minute))
		w.sample()
		if c.Progress != nil {
			c.Progress(w.minute, c.Trace.Minutes())
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("simulating: %w", err)
	}
	w.finish()
	r := w.result()
	r.Took = time.Since(began)
	return r, nil
}

// generate makes the minutes' invocations ahead of who takes them, on a processor of
// its own.
func generate(ctx context.Context, c *Config) (minutes <-chan []trace.Invocation, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan []trace.Invocation)
	// Three buffers: one is being filled, one waits, one is being read.
	buffers := make([][]trace.Invocation, 3)
	go func() {
		defer close(out)
		for m := range c.Trace.Minutes() {
			b := &buffers[m%len(buffers)]
			*b = c.Trace.Minute(m, c.Seed, (*b)[:0])
			select {
			case out <- *b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, func() {
		cancel()
		for range out { // until it has ended
		}
	}
}
