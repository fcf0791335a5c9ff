package memory

import (
	"context"

	"go.opentelemetry.io/otel/attribute"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing"
)

// A session that serves faults has one span, from when it is opened until its guest
// has done what it was started for: what it served until then are its figures.

// trace begins it.
func (s *session) trace(ctx context.Context) {
	_, s.span = tracing.Start(ctx, "memory", tracing.Policy.String(s.policy), tracing.Snapshot.String(s.src.SnapshotID))
}

// traced ends it, once.
func (s *session) traced() {
	if s.span == nil {
		return
	}
	s.spanned.Do(func() {
		if s.span.IsRecording() {
			s.span.SetAttributes(figures(s.Stats())...)
		}
		tracing.End(s.span, s.Err())
	})
}

func figures(m api.MemoryStats) []attribute.KeyValue {
	var remote []attribute.KeyValue
	if r := m.Remote; r != nil {
		remote = []attribute.KeyValue{
			attribute.Int64("skep.memory.remote.fetched_bytes", r.Fetched),
			attribute.Int64("skep.memory.remote.waits", r.Waits),
			attribute.Int64("skep.memory.remote.waited_us", r.Waited.Microseconds()),
		}
	}
	return append(remote,
		attribute.Int64("skep.memory.prefetched_pages", m.Prefetched),
		attribute.Int64("skep.memory.faults", m.Faults),
		attribute.Int64("skep.memory.zero_pages", m.ZeroPages),
		attribute.Int64("skep.memory.zeroed_ahead_pages", m.ZeroedAhead),
		attribute.Int64("skep.memory.missed_pages", m.Missed),
		attribute.Int64("skep.memory.bytes_read", m.BytesRead),
		attribute.Int64("skep.memory.fetch_us", m.FetchTime.Microseconds()),
		attribute.Int64("skep.memory.install_us", m.InstallTime.Microseconds()),
		attribute.Int64("skep.memory.handler_us", m.HandlerTime.Microseconds()),
		attribute.String("skep.memory.note", m.Note),
	)
}
