package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// CollectOptions say what Collect takes away. The zero value takes what nobody needs.
type CollectOptions struct {
	DryRun bool // only say what would be done
	// Grace is how long a pack stays condemned before it is deleted, by the store's
	// clock: as long as who started from a snapshot that was removed may still read
	// what it has not read yet. 0: not at all.
	Grace time.Duration
	// Keep, if positive, is how many snapshots of each function stay of those that fit the
	// same, the newest; the others are removed first.
	Keep int
}

// Collected says what Collect has done, or would do.
type Collected struct {
	Removed   []Entry // snapshots
	Pushes    int     // under way, whose packs were left alone
	Dead      int     // pushes that died, written off
	Packs     int     // in the store before
	Bytes     int64   // of them
	Condemned int     // packs condemned now
	Waiting   int     // packs condemned whose grace is not over, or that are needed again
	Deleted   int     // packs
	Freed     int64   // their bytes
}

// intentLimit bounds an object in pushing/, in bytes.
const intentLimit = 64 << 20

// Collect deletes the packs that no snapshot needs any more. Others may push, start and
// collect meanwhile, and it may be killed at any moment: the next one goes on. It deletes
// nothing while there is a manifest that cannot be read, as what that needs is not known.
//
// A pack is condemned first: from then on no push relies on it anew. Then all that rely
// on packs are looked at once more, pushes under way before snapshots, since a push becomes a
// snapshot and not the other way round. A pack that somebody needs stays, condemned, for as
// long as they do.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (Collected, error) {
	c := collection{s: s, o: o, known: map[string][]PackID{}}
	if err := c.run(ctx); err != nil {
		return c.out, fmt.Errorf("collecting garbage in the object store: %w", err)
	}
	return c.out, nil
}

type collection struct {
	s   *Store
	o   CollectOptions
	now time.Time
	out Collected
	// known are the packs of snapshots by the keys of their manifests, which never change.
	known map[string][]PackID
}

func (c *collection) run(ctx context.Context) (err error) {
	if c.now, err = c.s.now(ctx); err != nil {
		return err
	}
	if err := c.clocks(ctx); err != nil {
		return err
	}
	if err := c.retire(ctx); err != nil {
		return err
	}
	// Packs before what needs them: one that comes later is nobody's business here, and
	// who uploaded one of these has said so before.
	packs, err := c.s.names(ctx, packsDir)
	if err != nil {
		return err
	}
	for _, o := range packs {
		c.out.Packs++
		c.out.Bytes += o.Size
	}
	needed, err := c.needed(ctx)
	if err != nil {
		return err
	}
	condemned, err := c.s.names(ctx, condemnedDir)
	if err != nil {
		return err
	}
	for id := range packs {
		if _, ok := condemned[id]; ok || needed[id] {
			continue
		}
		c.out.Condemned++
		condemned[id] = Object{Modified: c.now}
		if !c.o.DryRun {
			if err := c.s.o.Bucket.Put(ctx, c.s.key(condemnedDir, id.String()), nil); err != nil {
				return err
			}
		}
	}
	return c.execute(ctx, packs, condemned)
}

// execute deletes the condemned whose grace is over and whom nobody needs.
func (c *collection) execute(ctx context.Context, packs, condemned map[PackID]Object) error {
	needed, err := c.needed(ctx)
	if err != nil {
		return err
	}
	for id, mark := range condemned {
		if needed[id] || mark.Modified.Add(c.o.Grace).After(c.now) {
			c.out.Waiting++
			continue
		}
		if o, ok := packs[id]; ok {
			c.out.Deleted++
			c.out.Freed += o.Size
		}
		if c.o.DryRun {
			continue
		}
		// The mark goes last: who finds none finds no pack either.
		for _, key := range []string{c.s.key(packsDir, id.String()), c.s.key(condemnedDir, id.String())} {
			if err := c.s.o.Bucket.Delete(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// clocks deletes what those that were killed have asked the time with.
func (c *collection) clocks(ctx context.Context) error {
	for o, err := range c.s.o.Bucket.List(ctx, c.s.key(clockDir, "")) {
		if err != nil {
			return err
		}
		if c.o.DryRun || !o.Modified.Add(c.s.o.Lease).Before(c.now) {
			continue
		}
		if err := c.s.o.Bucket.Delete(ctx, o.Key); err != nil {
			return err
		}
	}
	return nil
}

// retire removes the snapshots of which there are enough newer ones.
func (c *collection) retire(ctx context.Context) error {
	if c.o.Keep <= 0 {
		return nil
	}
	all, err := c.s.List(ctx, "")
	if err != nil {
		return err
	}
	have := map[[2]string]int{}
	for _, e := range all { // newest first
		k := [2]string{e.Function, e.Fit}
		if have[k]++; have[k] <= c.o.Keep {
			continue
		}
		c.out.Removed = append(c.out.Removed, e)
		if c.o.DryRun {
			continue
		}
		if err := c.s.Remove(ctx, e.Function, e.ID); err != nil && !errors.Is(err, ErrNotThere) {
			return err
		}
	}
	return nil
}

// needed returns the packs that pushes under way or snapshots rely on.
func (c *collection) needed(ctx context.Context) (map[PackID]bool, error) {
	needed := map[PackID]bool{}
	if err := c.pushes(ctx, needed); err != nil {
		return nil, err
	}
	entries, err := c.settled(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if slices.ContainsFunc(c.out.Removed, func(r Entry) bool { return r.Function == e.Function && r.ID == e.ID }) {
			continue // or would be
		}
		packs, err := c.packs(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("%w; nothing is deleted while it is not known what this snapshot needs: remove it (skep snapshot rm --remote %s/%s) or try again", err, e.Function, e.ID)
		}
		for _, id := range packs {
			needed[id] = true
		}
	}
	return needed, nil
}

// pushes adds what pushes under way rely on, and writes off those that nothing was heard
// of for their lease.
func (c *collection) pushes(ctx context.Context, needed map[PackID]bool) error {
	c.out.Pushes = 0
	for o, err := range c.s.o.Bucket.List(ctx, c.s.key(pushingDir, "")) {
		if err != nil {
			return err
		}
		if o.Modified.Add(c.s.o.Lease).Before(c.now) {
			c.out.Dead++
			if !c.o.DryRun {
				if err := c.s.o.Bucket.Delete(ctx, o.Key); err != nil {
					return err
				}
			}
			continue
		}
		b, err := c.s.o.Bucket.Get(ctx, o.Key, intentLimit)
		if errors.Is(err, ErrNotThere) {
			continue // over, and its snapshot is published, or given up
		}
		if err != nil {
			return err
		}
		var in intent
		if err := json.Unmarshal(b, &in); err != nil {
			return fmt.Errorf("%s: %w: %w", o.Key, ErrFormat, err)
		}
		c.out.Pushes++
		for _, name := range in.Packs {
			id, err := parsePackID(name)
			if err != nil {
				return fmt.Errorf("%s: %w", o.Key, err)
			}
			needed[id] = true
		}
	}
	return nil
}

// settled lists all manifests, twice the same: a list of many pages that is read while a manifest
// takes another's place may show neither.
func (c *collection) settled(ctx context.Context) ([]Entry, error) {
	var last []Entry
	for range 20 {
		all, err := c.s.entries(ctx, "")
		if err != nil {
			return nil, err
		}
		if last != nil && slices.EqualFunc(all, last, func(a, b Entry) bool { return a.key == b.key }) && c.readable(ctx, all) {
			return all, nil
		}
		if last = all; last == nil {
			last = []Entry{}
		}
	}
	return nil, fmt.Errorf("%w: the list of snapshots changes all the time; try again", ErrUnavailable)
}

// readable says whether none of the entries has gone meanwhile; what else is wrong with
// one, its reader finds out.
func (c *collection) readable(ctx context.Context, all []Entry) bool {
	for _, e := range all {
		if _, err := c.packs(ctx, e); errors.Is(err, ErrNotThere) {
			return false
		}
	}
	return true
}

// packs returns the packs that a snapshot needs, also when it was removed since they were asked for first.
func (c *collection) packs(ctx context.Context, e Entry) ([]PackID, error) {
	if packs, ok := c.known[e.key]; ok {
		return packs, nil
	}
	packs, err := c.s.packs(ctx, e)
	if err == nil {
		c.known[e.key] = packs
	}
	return packs, err
}
