package remote

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"time"
)

// Stats counts what a Store has done since New.
type Stats struct {
	Fetched  int64 // bytes read of objects
	Requests int64 // of any kind
	Failed   int64 // of those, the ones to which the store gave no proper answer, after all retries
	Waits    int64 // times that a guest waited for something to arrive,
	Waited   time.Duration
	Cache    CacheStats
}

// Stats returns the counts.
func (s *Store) Stats() Stats {
	m := &s.meter
	out := Stats{Fetched: m.fetched.Load(), Requests: m.requests.Load(), Failed: m.failed.Load(), Waits: m.waits.Load(), Waited: time.Duration(m.waited.Load())}
	if s.o.Cache != nil {
		out.Cache = s.o.Cache.Stats()
	}
	return out
}

// meter is what a Store counts.
type meter struct{ fetched, requests, failed, waits, waited atomic.Int64 }

// metered is a bucket whose use is counted.
type metered struct {
	Bucket
	m *meter
}

func (b metered) count(n int, err error) {
	b.m.requests.Add(1)
	b.m.fetched.Add(int64(n))
	if errors.Is(err, ErrUnavailable) {
		b.m.failed.Add(1)
	}
}

func (b metered) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	p, err := b.Bucket.Get(ctx, key, limit)
	b.count(len(p), err)
	return p, err
}

func (b metered) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	err := b.Bucket.ReadAt(ctx, key, p, off)
	n := len(p)
	if err != nil {
		n = 0
	}
	b.count(n, err)
	return err
}

func (b metered) Put(ctx context.Context, key string, data []byte) error {
	err := b.Bucket.Put(ctx, key, data)
	b.count(0, err)
	return err
}

func (b metered) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var failed error
		defer func() { b.count(0, failed) }()
		for o, err := range b.Bucket.List(ctx, prefix) {
			if failed = err; !yield(o, err) {
				return
			}
		}
	}
}

func (b metered) Delete(ctx context.Context, key string) error {
	err := b.Bucket.Delete(ctx, key)
	b.count(0, err)
	return err
}
