// Package remotetest has what tests of the store of snapshots need: a bucket in
// memory, of which tests can say what goes wrong, and the suite that every bucket
// must pass.
package remotetest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/remote"
)

// Memory is a bucket in memory. The zero value is empty.
type Memory struct {
	// Fail, when set, is asked before each operation ("get", "read", "put", "list",
	// "delete"); its error is the operation's, which is not done then.
	Fail func(op, key string) error
	// Spoil, when set, is given what a read has got, and returns what it gets instead.
	Spoil func(key string, p []byte) []byte
	// Now is the store's clock; nil: a clock that ticks once for each object written.
	Now func() time.Time

	mu      sync.Mutex
	objects map[string]object // guarded by mu
	writes  int               // guarded by mu
	read    int64             // guarded by mu: bytes
	reads   int               // guarded by mu
}

type object struct {
	data     []byte
	modified time.Time
}

var _ remote.Bucket = (*Memory)(nil)

func (m *Memory) fail(ctx context.Context, op, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.Fail != nil {
		return m.Fail(op, key)
	}
	return nil
}

func (m *Memory) get(key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", key, remote.ErrNotThere)
	}
	p := bytes.Clone(o.data)
	if m.Spoil != nil {
		p = m.Spoil(key, p)
	}
	return p, nil
}

func (m *Memory) counted(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	m.read += int64(n)
}

// Get implements remote.Bucket.
func (m *Memory) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	if err := m.fail(ctx, "get", key); err != nil {
		return nil, err
	}
	p, err := m.get(key)
	if err == nil && int64(len(p)) > limit {
		return nil, fmt.Errorf("object %s has %d bytes: %w", key, len(p), remote.ErrFormat)
	}
	m.counted(len(p))
	return p, err
}

// ReadAt implements remote.Bucket.
func (m *Memory) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if err := m.fail(ctx, "read", key); err != nil {
		return err
	}
	all, err := m.get(key)
	if err != nil {
		return err
	}
	if off+int64(len(p)) > int64(len(all)) {
		return fmt.Errorf("object %s has %d bytes: %w", key, len(all), remote.ErrFormat)
	}
	m.counted(copy(p, all[off:]))
	return nil
}

// Put implements remote.Bucket.
func (m *Memory) Put(ctx context.Context, key string, data []byte) error {
	if err := m.fail(ctx, "put", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects == nil {
		m.objects = map[string]object{}
	}
	m.writes++
	at := time.Unix(1_800_000_000+int64(m.writes), 0)
	if m.Now != nil {
		at = m.Now()
	}
	m.objects[key] = object{bytes.Clone(data), at}
	return nil
}

// List implements remote.Bucket.
func (m *Memory) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		if err := m.fail(ctx, "list", prefix); err != nil {
			yield(remote.Object{}, err)
			return
		}
		for _, key := range m.Keys(prefix) {
			m.mu.Lock()
			o, ok := m.objects[key]
			m.mu.Unlock()
			if ok && !yield(remote.Object{Key: key, Size: int64(len(o.data)), Modified: o.modified}, nil) {
				return
			}
		}
	}
}

// Delete implements remote.Bucket.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := m.fail(ctx, "delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// Keys returns the keys that begin with prefix, sorted.
func (m *Memory) Keys(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := slices.Sorted(maps.Keys(m.objects))
	return slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) })
}

// Read returns how many reads there were, and of how many bytes.
func (m *Memory) Read() (reads int, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads, m.read
}
