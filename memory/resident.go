package memory

import (
	"context"

	"github.com/skep-dev/skep/memory/workingset"
)

// residentPolicy is the floor: all of the guest's memory is there before the
// vCPUs run, the holes as zero pages.
type residentPolicy struct{ *Policies }

func (residentPolicy) Name() string { return "resident" }

// residentReaders is how many reads of 1 MiB are under way: enough for any
// disk to reach its sequential speed.
const residentReaders = 4

func (p residentPolicy) Open(ctx context.Context, src Source) (Session, error) {
	s, err := p.open(ctx, p.Name(), src, func(b *backing) (*plan, error) { return newPlan(b.extents()), nil })
	if err != nil {
		return nil, err
	}
	spans := s.server.plan.spans(bufferSize) // from Attach on the plan is the server's
	s.begin = func() { s.fetchMemory(spans, residentReaders) }
	return s, nil
}

// extents is all of the memory file, as runs of data and of holes.
func (b *backing) extents() []workingset.Run {
	var runs []workingset.Run
	for page := uint32(0); page < b.pages; {
		end := page + 1
		for end < b.pages && b.data.has(end) == b.data.has(page) {
			end++
		}
		runs = append(runs, workingset.Run{First: page, Pages: end - page, Zero: !b.data.has(page)})
		page = end
	}
	return runs
}
