package memory

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// parallelPolicy is the paper's first step: the pages of the trace are read
// from the memory file page by page, by many workers at once, and installed
// before the vCPUs run. It needs no working-set file.
type parallelPolicy struct{ *Policies }

func (parallelPolicy) Name() string { return "parallel" }

// parallelReaders is the paper's number of threads.
const parallelReaders = 16

func (p parallelPolicy) Open(ctx context.Context, src Source) (Session, error) {
	trace, why := workingset.LoadTrace(src.Dir, src.of())
	s, err := p.open(ctx, p.Name(), src, func(b *backing) (*plan, error) {
		if why != nil {
			return nil, nil
		}
		hole := func(page uint32) bool { return !b.data.has(page) }
		return newPlan(workingset.Runs(trace.Touches, hole, 1)), nil
	})
	if err != nil {
		return nil, err
	}
	if why != nil {
		p.openRecording(s, why)
		return s, nil
	}
	s.prefetch = func(context.Context) error { s.fetchPages(parallelReaders); return nil }
	return s, nil
}

// fetchPages begins to read the plan, of runs of one page, by n workers.
func (s *session) fetchPages(n int) {
	start := time.Now()
	var next, left atomic.Int64
	left.Store(int64(n))
	for range n {
		s.work.Go(func() {
			if err := s.fetchPagesFrom(&next); err != nil && s.ctx.Err() == nil {
				s.server.fail(err)
			}
			if left.Add(-1) == 0 {
				s.count.fetch.Store(int64(time.Since(start)))
			}
		})
	}
}

func (s *session) fetchPagesFrom(next *atomic.Int64) error {
	runs := s.server.plan.runs
	var buf *buffer
	var free []byte
	defer func() {
		if buf != nil {
			buf.unref()
		}
	}()
	for i := int(next.Add(1)) - 1; i < len(runs) && s.ctx.Err() == nil; i = int(next.Add(1)) - 1 {
		c := chunk{span: span{i, i + 1}}
		if !runs[i].Zero {
			if len(free) == 0 {
				if buf != nil {
					buf.unref()
				}
				var err error
				if buf, err = s.owner.pool.get(s.ctx, &s.share); err != nil {
					return err
				}
				free = buf.mem
			}
			c.data, free = free[:pageSize:pageSize], free[pageSize:]
			if err := s.back.read(s.ctx, c.data, runs[i].First); err != nil {
				return err
			}
			s.count.bytesRead.Add(pageSize)
			buf.ref()
			c.buf = buf
		}
		s.server.push(c)
	}
	return nil
}
