package memory

import (
	"fmt"
	"sync/atomic"
	"time"
)

// fetchMemory begins to read spans of the plan from the memory file, in order,
// by n workers, and to push them to the server.
func (s *session) fetchMemory(spans []span, n int) {
	start := time.Now()
	var next, left atomic.Int64
	left.Store(int64(len(spans)))
	for range min(n, len(spans)) {
		s.work.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(spans) {
					return
				}
				if err := s.fetchSpan(spans[i]); err != nil {
					if s.ctx.Err() == nil {
						s.server.fail(fmt.Errorf("reading the snapshot's memory: %w", err))
					}
					return
				}
				if left.Add(-1) == 0 {
					s.count.fetch.Store(int64(time.Since(start)))
				}
			}
		})
	}
}

// fetchSpan reads one span. Runs that follow one another in the file are read
// together.
func (s *session) fetchSpan(sp span) error {
	p := s.server.plan
	size := p.bytes(sp)
	c := chunk{span: sp}
	if size > 0 {
		b, err := s.owner.pool.get(s.ctx, &s.share)
		if err != nil {
			return err
		}
		c.buf, c.data = b, b.mem[:size]
	}
	data := c.data
	for i := sp.from; i < sp.to; {
		first, bytes := p.runs[i].First, p.runs[i].Bytes()
		end := p.runs[i].End()
		for i++; i < sp.to && p.runs[i].First == end && !p.runs[i].Zero == (bytes > 0); i++ {
			bytes += p.runs[i].Bytes()
			end = p.runs[i].End()
		}
		if err := s.back.read(s.ctx, data[:bytes], first); err != nil {
			c.buf.unref()
			return err
		}
		data = data[bytes:]
	}
	s.count.bytesRead.Add(size)
	s.server.push(c)
	return nil
}
