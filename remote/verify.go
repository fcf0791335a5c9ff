package remote

import (
	"context"
	"errors"
	"fmt"
)

// Problem is something that is wrong with a snapshot in the store.
type Problem struct {
	Entry Entry
	Err   error
}

// Verified says what Verify has looked at.
type Verified struct {
	Snapshots int
	Chunks    int   // each once
	Bytes     int64 // of packs
	Problems  []Problem
}

// Verify checks that every snapshot, or those of a function, can be had whole: its
// manifest and, unless quick, the digest of every chunk, each once. Quick looks only
// whether the packs are there and long enough. What is wrong is in Verified; an error says that
// it could not be found out.
func (s *Store) Verify(ctx context.Context, function string, quick bool, progress func(done, total int64)) (Verified, error) {
	var out Verified
	if _, err := s.sealing(ctx); err != nil {
		return out, err
	}
	entries, err := s.List(ctx, function)
	if err != nil {
		return out, err
	}
	packs, err := s.names(ctx, packsDir)
	if err != nil {
		return out, err
	}
	type stored struct {
		pack   PackID
		offset uint32
		digest Digest
	}
	good := map[stored]bool{}
	for i, e := range entries {
		out.Snapshots++
		m, err := s.Load(ctx, e)
		if errors.Is(err, ErrNotThere) {
			continue // removed just now
		}
		var want []uint32
		if err == nil {
			for i, c := range m.Chunks {
				k := stored{m.Packs[c.Pack], c.Offset, c.Digest}
				if o, ok := packs[k.pack]; !ok || o.Size < int64(c.Offset)+int64(c.Stored) {
					err = fmt.Errorf("chunk %d is at %d of pack %s, which has %d bytes: %w", i, c.Offset, k.pack, o.Size, ErrNotThere)
					break
				}
				if !good[k] {
					want = append(want, uint32(i))
				}
			}
		}
		if err == nil && !quick {
			err = s.each(ctx, m, want, s.readPack, nil, func(uint32, []byte) error { return nil })
		}
		if err != nil && (ctx.Err() != nil || errors.Is(err, ErrUnavailable)) {
			return out, fmt.Errorf("verifying snapshot %s in the object store: %w", e.ID, err)
		}
		if err != nil {
			out.Problems = append(out.Problems, Problem{e, err})
			continue
		}
		for _, i := range want {
			c := m.Chunks[i]
			good[stored{m.Packs[c.Pack], c.Offset, c.Digest}] = true
			out.Chunks++
			out.Bytes += int64(c.Stored)
		}
		if progress != nil {
			progress(int64(i+1), int64(len(entries)))
		}
	}
	return out, nil
}

// Use is what one snapshot takes in the store.
type Use struct {
	Entry   Entry
	Length  int64 // bytes of its files, holes included
	Content int64 // of them bytes that are not zeros
	Stored  int64 // bytes of its chunks
	Own     int64 // of them bytes of chunks that no other snapshot has
}

// Usage is what is in the store, in bytes.
type Usage struct {
	Snapshots []Use
	Packs     int
	PackBytes int64
	Needed    int64 // bytes of chunks that a snapshot has, each once
	Condemned int   // packs
	Pushes    int   // written down as under way
}

// Usage says what the snapshots, or those of a function, take.
func (s *Store) Usage(ctx context.Context, function string) (Usage, error) {
	var out Usage
	entries, err := s.List(ctx, "")
	if err != nil {
		return out, err
	}
	type stored struct {
		pack   PackID
		offset uint32
	}
	users := map[stored]int{}
	var ms []*Manifest
	for _, e := range entries {
		m, err := s.Load(ctx, e)
		if err != nil && !errors.Is(err, ErrNotThere) {
			return out, err
		}
		ms = append(ms, m)
		if m == nil {
			continue
		}
		for _, c := range m.Chunks {
			k := stored{m.Packs[c.Pack], c.Offset}
			if users[k]++; users[k] == 1 {
				out.Needed += int64(c.Stored)
			}
		}
	}
	for i, e := range entries {
		if ms[i] == nil || function != "" && e.Function != function {
			continue
		}
		u := Use{Entry: e}
		for _, f := range ms[i].Files {
			u.Length += f.Size
			for _, c := range f.chunksOf() {
				u.Content += int64(ms[i].Chunks[c].Size)
			}
		}
		for _, c := range ms[i].Chunks {
			u.Stored += int64(c.Stored)
			if users[stored{ms[i].Packs[c.Pack], c.Offset}] == 1 {
				u.Own += int64(c.Stored)
			}
		}
		out.Snapshots = append(out.Snapshots, u)
	}
	packs, err := s.names(ctx, packsDir)
	if err != nil {
		return out, err
	}
	for _, o := range packs {
		out.Packs++
		out.PackBytes += o.Size
	}
	condemned, err := s.names(ctx, condemnedDir)
	if err != nil {
		return out, err
	}
	out.Condemned = len(condemned)
	for _, err := range s.o.Bucket.List(ctx, s.key(pushingDir, "")) {
		if err != nil {
			return out, err
		}
		out.Pushes++
	}
	return out, nil
}
