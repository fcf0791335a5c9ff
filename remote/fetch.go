package remote

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

const (
	// maxRange and maxGap bound what one request reads, and what of it may be unwanted,
	// in bytes.
	maxRange = 4 << 20
	maxGap   = 64 << 10
)

// span is a part of a pack that is read at once, with the chunks in it that are wanted.
type span struct {
	pack   uint32
	off    int64
	end    int64
	chunks []uint32 // indexes, by offset
}

// spans makes reads of chunks, given by index: neighbours in a pack are read together, up to longest
// bytes. They stand in the order in which the first of their chunks was given.
func (m *Manifest) spans(want []uint32, longest int64) []span {
	rank := make(map[uint32]int, len(want))
	for i, c := range want {
		if _, ok := rank[c]; !ok {
			rank[c] = i
		}
	}
	sorted := slices.Clone(want)
	slices.SortFunc(sorted, func(a, b uint32) int {
		x, y := &m.Chunks[a], &m.Chunks[b]
		return cmp.Or(cmp.Compare(x.Pack, y.Pack), cmp.Compare(x.Offset, y.Offset), cmp.Compare(a, b))
	})
	var out []span
	for _, i := range slices.Compact(sorted) {
		c := &m.Chunks[i]
		off, end := int64(c.Offset), int64(c.Offset)+int64(c.Stored)
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.pack == c.Pack && off-last.end <= maxGap && end-last.off <= longest {
				last.end = max(last.end, end)
				last.chunks = append(last.chunks, i)
				continue
			}
		}
		out = append(out, span{c.Pack, off, end, []uint32{i}})
	}
	first := func(s span) int {
		r := rank[s.chunks[0]]
		for _, c := range s.chunks {
			r = min(r, rank[c])
		}
		return r
	}
	slices.SortStableFunc(out, func(a, b span) int { return cmp.Compare(first(a), first(b)) })
	return out
}

// smallRead is a read that costs by its round trip more than by its bytes.
const smallRead = 1 << 20

// scattered returns those packs of which a snapshot has so little at a time that without them
// it costs no more than so many small reads, those with the least bytes a read first. A snapshot
// that stores only what is new has its chunks in more and more packs from one to the next;
// where these are stored anew they lie together again.
func (m *Manifest) scattered(limit int) map[PackID]bool {
	all := make([]uint32, len(m.Chunks))
	for i := range all {
		all[i] = uint32(i)
	}
	type use struct {
		pack  uint32
		bytes int64
		reads int64 // small ones
	}
	uses := make([]use, len(m.Packs))
	left := int64(0)
	for _, sp := range m.spans(all, maxRange) {
		u := &uses[sp.pack]
		u.pack = sp.pack
		if n := sp.end - sp.off; n < smallRead {
			u.bytes += n
			u.reads++
			left++
		}
	}
	uses = slices.DeleteFunc(uses, func(u use) bool { return u.reads == 0 })
	slices.SortFunc(uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.bytes*b.reads, b.bytes*a.reads), cmp.Compare(a.pack, b.pack))
	})
	out := map[PackID]bool{}
	for _, u := range uses {
		if left <= int64(limit) {
			break
		}
		out[m.Packs[u.pack]] = true
		left -= u.reads
	}
	return out
}

// chunksOf lists the chunks of a file in the order of its blocks.
func (c Content) chunksOf() []uint32 {
	var out []uint32
	for _, r := range c.Runs {
		for i := range r.Blocks {
			out = append(out, r.Chunk+i)
		}
	}
	return out
}

// Stored is how many bytes the chunks of a file occupy in the store.
func (m *Manifest) Stored(c Content) int64 {
	seen, n := map[uint32]bool{}, int64(0)
	for _, i := range c.chunksOf() {
		if !seen[i] {
			seen[i] = true
			n += int64(m.Chunks[i].Stored)
		}
	}
	return n
}

// Target is where Fetch puts a file: all but its zeros, which nothing is written for.
type Target struct {
	Name string
	To   io.WriterAt
}

// Fetch reads files of a snapshot, those that stand first first, several ranges at once,
// and writes every chunk to where it belongs once its digest is right. Errors wrap
// ErrNotThere, ErrFormat or ErrUnavailable, or are the target's; the targets then have some
// of the content. progress, which may be nil, is told of bytes of the store.
func (s *Store) Fetch(ctx context.Context, m *Manifest, files []Target, progress func(done, total int64)) error {
	type place struct {
		to  io.WriterAt
		off int64
	}
	places := map[uint32][]place{}
	var want []uint32
	for _, t := range files {
		c, ok := m.File(t.Name)
		if !ok {
			return fmt.Errorf("the snapshot has no file %s: %w", t.Name, ErrFormat)
		}
		for _, r := range c.Runs {
			for i := range r.Blocks {
				want = append(want, r.Chunk+i)
				places[r.Chunk+i] = append(places[r.Chunk+i], place{t.To, int64(r.First+i) * int64(m.Block)})
			}
		}
	}
	cached := func(ctx context.Context, m *Manifest, sp span, use func(chunk uint32, data []byte) error) error {
		_, err := s.readSpan(ctx, m, sp, use)
		return err
	}
	return s.each(ctx, m, want, cached, progress, func(i uint32, data []byte) error {
		for _, p := range places[i] {
			if _, err := p.to.WriteAt(data, p.off); err != nil {
				return err
			}
		}
		return nil
	})
}

// readFunc uses the chunks of a part of a pack.
type readFunc func(ctx context.Context, m *Manifest, sp span, use func(chunk uint32, data []byte) error) error

// each reads chunks and calls use with the content of each, from several goroutines.
func (s *Store) each(ctx context.Context, m *Manifest, want []uint32, read readFunc, progress func(done, total int64), use func(chunk uint32, data []byte) error) error {
	spans := m.spans(want, maxRange)
	var total int64
	for _, sp := range spans {
		total += sp.end - sp.off
	}
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Reads)
	var done atomic.Int64
	for _, sp := range spans {
		if reading.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := read(reading, m, sp, use); err != nil {
				return err
			}
			if n := done.Add(sp.end - sp.off); progress != nil {
				progress(n, total)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// readSpan uses the chunks of a part of a pack: those that the cache has, and then the others, which
// it reads. It returns how many bytes it has read of the store.
func (s *Store) readSpan(ctx context.Context, m *Manifest, sp span, use func(chunk uint32, data []byte) error) (int64, error) {
	rest, err := s.fromCache(m, sp.chunks, use)
	if err != nil || len(rest) == 0 {
		return 0, err
	}
	parts, read := []span{sp}, int64(0)
	if len(rest) < len(sp.chunks) {
		parts = m.spans(rest, sp.end-sp.off)
	}
	for _, part := range parts {
		if err := s.readPack(ctx, m, part, use); err != nil {
			return read, err
		}
		read += part.end - part.off
	}
	return read, nil
}

// fromCache uses those of the chunks that the cache has, and returns the others.
func (s *Store) fromCache(m *Manifest, chunks []uint32, use func(chunk uint32, data []byte) error) (rest []uint32, err error) {
	if s.o.Cache == nil {
		return chunks, nil
	}
	buf := make([]byte, 0, m.Block)
	for _, i := range chunks {
		c := m.Chunks[i]
		stored := s.o.Cache.get(c.Digest)
		if stored == nil {
			rest = append(rest, i)
			continue
		}
		data, err := s.open(c, stored, buf)
		if err != nil { // a crash, or somebody else, has damaged it
			s.o.Cache.drop(c.Digest)
			rest = append(rest, i)
			continue
		}
		s.o.Cache.used()
		if err := use(i, data); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// keep puts a chunk that was verified into the cache.
func (s *Store) keep(c Chunk, stored []byte) {
	if s.o.Cache == nil {
		return
	}
	if err := s.o.Cache.put(c.Digest, stored); err != nil {
		s.cacheFull.Do(func() { s.o.Log.Warn("chunks of the object store are not kept on disk", "error", err) })
	}
}

// readPack reads a part of a pack and uses the chunks in it. What arrives damaged is
// read once more, alone: it may have been damaged on the way.
func (s *Store) readPack(ctx context.Context, m *Manifest, sp span, use func(chunk uint32, data []byte) error) error {
	id := m.Packs[sp.pack]
	key := s.key(packsDir, id.String())
	raw := make([]byte, sp.end-sp.off)
	if err := s.o.Bucket.ReadAt(ctx, key, raw, sp.off); err != nil {
		return fmt.Errorf("reading pack %s: %w", id, err)
	}
	buf := make([]byte, 0, m.Block)
	for _, i := range sp.chunks {
		c := m.Chunks[i]
		at := int64(c.Offset) - sp.off
		stored := raw[at : at+int64(c.Stored)]
		data, err := s.open(c, stored, buf)
		if err != nil {
			again := make([]byte, c.Stored)
			if err := s.o.Bucket.ReadAt(ctx, key, again, int64(c.Offset)); err != nil {
				return fmt.Errorf("reading pack %s: %w", id, err)
			}
			stored = again
			data, err = s.open(c, stored, buf)
		}
		if err != nil {
			return fmt.Errorf("pack %s, chunk at %d: %w", id, c.Offset, err)
		}
		if err := use(i, data); err != nil {
			return err
		}
		s.keep(c, stored)
	}
	return nil
}

// open returns the content of a chunk from what is stored of it, verified.
func (s *Store) open(c Chunk, stored, buf []byte) ([]byte, error) {
	k := s.sealer.Load() // which opened the manifest
	if k != nil {
		var err error
		if stored, err = k.OpenChunk(c.Digest[:], stored); err != nil {
			return nil, refuse("it cannot be opened: %v", err)
		}
	}
	data, err := s.dec.DecodeAll(stored, buf[:0])
	if err != nil {
		return nil, refuse("it does not decompress (%v): it was changed or damaged", err)
	}
	if sum := digest(k, data); len(data) != int(c.Size) || sum != c.Digest {
		return nil, refuse("its content has digest %x, the manifest says %s: it was changed or damaged", sum, c.Digest)
	}
	return data, nil
}
