package experiment

import (
	"fmt"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/cluster/coldstart"
	"github.com/skep-dev/skep/memory/replay"
)

// Point is one thing to measure once. Its fields, but for those that only say
// how, are its identity: a point that has samples is not measured again.
type Point struct {
	Experiment string `json:"experiment"`
	Function   string `json:"function"`
	Variant    string `json:"variant"`         // mostly a memory policy
	N          int    `json:"n,omitempty"`     // instances at once, where that is varied
	Input      int    `json:"input,omitempty"` // of the function, from 1
	Run        int    `json:"run"`

	Seconds float64 `json:"-"` // about how long it takes
}

func (p Point) key() string {
	return fmt.Sprintf("%s/%s/%s/%d/%d", p.Experiment, p.Function, p.Variant, p.N, p.Run)
}

func (p Point) String() string {
	s := p.Function + " " + p.Variant
	if p.N > 0 {
		s += fmt.Sprintf(" ×%d", p.N)
	}
	return fmt.Sprintf("%s, run %d", s, p.Run+1)
}

// Sample is one measured invocation, or one replayed.
type Sample struct {
	Point
	Instance int       `json:"instance,omitempty"` // of those at once
	Of       int       `json:"of"`                 // samples that the point has
	Session  int       `json:"in_session"`
	Time     time.Time `json:"time"`
	Cache    *Cache    `json:"cache,omitempty"`
	// Replayed samples had no VM: a process touched the pages of a trace.
	Replayed bool            `json:"replayed,omitempty"`
	Record   *api.Invocation `json:"record,omitempty"`
	Replay   *replay.Sample  `json:"replay,omitempty"`
	Native   *Native         `json:"native,omitempty"`
	Floors   []replay.Floor  `json:"floors,omitempty"` // measured just before
	Pages    *Pages          `json:"pages,omitempty"`
	Guest    *Footprint      `json:"footprint,omitempty"`
	Clone    *Clone          `json:"clone,omitempty"`
	Storage  *Storage        `json:"storage,omitempty"`
	Stack    *coldstart.Path `json:"stack,omitempty"` // through Knative; it has no record then
	Scaled   *Scaled         `json:"scaled,omitempty"`
	Remote   *Remote         `json:"remote,omitempty"` // what was had of the object store
	Note     string          `json:"note,omitempty"`
}

// Total is the time from request to response, in milliseconds.
func (s Sample) Total() float64 {
	switch {
	case s.Replay != nil:
		return ms(s.Replay.Total)
	case s.Scaled != nil && s.Scaled.Call != nil:
		return ms(s.Scaled.Call.Latency)
	case s.Stack != nil:
		return ms(s.Stack.Total)
	case s.Record == nil:
		return 0
	}
	return ms(s.Record.Phases.Total)
}

// Faults that the invocation waited for.
func (s Sample) Faults() float64 {
	switch {
	case s.Replay != nil:
		return float64(s.Replay.Faults)
	case s.Record != nil && s.Record.Memory != nil:
		return float64(s.Record.Memory.Faults)
	}
	return 0
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Cache says what was taken out of the page cache before a start.
type Cache struct {
	Dropped string `json:"dropped"`      // none, files or all
	Files   int    `json:"files"`        // that were dropped
	Before  int64  `json:"pages_before"` // pages of them that were cached; -1: not known
	Left    int64  `json:"pages_left"`   // and still are, asked of the kernel after dropping; -1: not known
}

// Pages describes a trace, beside the one of the function's first input where
// there are two.
type Pages struct {
	api.PageSummary
	Lengths []int `json:"run_lengths,omitempty"` // runs of 1, 2, … 16 or more pages
	Same    int   `json:"same"`                  // pages that the reference touched too
	Unique  int   `json:"unique"`                // pages that it did not
	Missing int   `json:"missing"`               // pages of the reference that were not touched
}

// Footprint is memory of a VMM's process, in bytes.
type Footprint struct {
	Guest int64 `json:"guest_bytes"` // of the guest's memory, resident
	VMM   int64 `json:"vmm_bytes"`   // all that is resident
}

// Storage says how a disk was slowed down.
type Storage struct {
	Method string `json:"method"` // how
	Device string `json:"device"`
	BPS    int64  `json:"bytes_per_s"`
	IOPS   int64  `json:"reads_per_s"`
}
