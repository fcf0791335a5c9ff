package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// What somebody waits for comes with so many blocks that follow it in the file.
	missBlocks = 32
	// Fill asks for ranges of at most so many bytes, so many at once: who waits for a chunk
	// waits for no more than what is under way.
	fillRange = 1 << 20
	fillReads = 4
	// A store that does not answer is asked again after a time that doubles from the first to the second.
	askAgain     = 100 * time.Millisecond
	askAgainMost = 2 * time.Second
)

// Arriving is a file of a snapshot that is being fetched and is read meanwhile: what is asked for
// before it is here is fetched first. Nothing of it is to be read before it, or what it belongs
// to, was brought. Its methods may be called from many goroutines.
type Arriving struct {
	s      *Store
	m      *Manifest
	c      Content
	to     io.WriterAt
	wait   time.Duration
	chunks []uint32            // of the file, in order
	places map[uint32][]uint32 // blocks of each chunk
	stored int64               // bytes of those chunks in the store

	fetched atomic.Int64 // bytes that came from the store
	waits   atomic.Int64 // times that somebody waited,
	waited  atomic.Int64 // and nanoseconds

	mu     sync.Mutex
	here   []bool                   // guarded by mu: by chunk
	coming map[uint32]chan struct{} // guarded by mu: closed when the fetch is over, however
	bad    error                    // guarded by mu: what the store has is of no use
}

// Arrive begins to have a file of a snapshot, that is empty and as long as the manifest says,
// by and by. Who waits for a part of it does so for at most wait.
func (s *Store) Arrive(m *Manifest, name string, to io.WriterAt, wait time.Duration) (*Arriving, error) {
	c, ok := m.File(name)
	if !ok {
		return nil, fmt.Errorf("the snapshot has no file %s: %w", name, ErrFormat)
	}
	a := &Arriving{s: s, m: m, c: c, to: to, wait: wait, places: map[uint32][]uint32{}, stored: m.Stored(c), here: make([]bool, len(m.Chunks)), coming: map[uint32]chan struct{}{}}
	for _, r := range c.Runs {
		for i := range r.Blocks {
			k := r.Chunk + i
			if a.places[k] == nil {
				a.chunks = append(a.chunks, k)
			}
			a.places[k] = append(a.places[k], r.First+i)
		}
	}
	return a, nil
}

// Extent is a piece of a file, in bytes.
type Extent struct{ Offset, Length int64 }

// Data lists the pieces of the file that may be other than zeros, in order.
func (a *Arriving) Data() []Extent {
	var out []Extent
	for _, r := range a.c.Runs {
		off := int64(r.First) * int64(a.m.Block)
		e := Extent{off, min(int64(r.Blocks)*int64(a.m.Block), a.c.Size-off)}
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == off {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out
}

// each calls f with the blocks of a piece of the file that have a chunk, in order, until it says false.
func (a *Arriving) each(off, length int64, f func(block, chunk uint32) bool) {
	block := int64(a.m.Block)
	first, last := uint32(off/block), uint32((off+length-1)/block)
	i, found := slices.BinarySearchFunc(a.c.Runs, first, func(r Run, b uint32) int { return int(int64(r.First) - int64(b)) })
	if !found && i > 0 {
		i--
	}
	for ; i < len(a.c.Runs) && a.c.Runs[i].First <= last; i++ {
		r := a.c.Runs[i]
		for b := max(first, r.First); b <= last && b < r.First+r.Blocks; b++ {
			if !f(b, r.Chunk+b-r.First) {
				return
			}
		}
	}
}

// Here says whether a piece of the file, which is not empty, is here.
func (a *Arriving) Here(off, length int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _, missing := a.missing(off, length)
	return !missing
}

// missing returns the first block of a piece that is not here, and its chunk. The mutex is held.
func (a *Arriving) missing(off, length int64) (block, chunk uint32, missing bool) {
	a.each(off, length, func(b, c uint32) bool {
		block, chunk, missing = b, c, !a.here[c]
		return !missing
	})
	return block, chunk, missing
}

// Bring returns when a piece of the file, which is not empty, is here. A store that does not answer is
// asked again for as long as a guest may wait; then, and where what it has is of no use, the error
// wraps ErrUnavailable, ErrNotThere or ErrFormat.
func (a *Arriving) Bring(ctx context.Context, off, length int64) error {
	if a.Here(off, length) {
		return nil
	}
	began := time.Now()
	a.waits.Add(1)
	a.s.meter.waits.Add(1)
	a.s.waiting.enter()
	defer func() {
		a.s.waiting.leave()
		took := int64(time.Since(began))
		a.waited.Add(took)
		a.s.meter.waited.Add(took)
	}()
	within, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	last := errors.New("no answer came")
	for pause := askAgain; ; {
		there, err := a.bring(within, off, length)
		switch {
		case there:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case within.Err() != nil:
			return fmt.Errorf("%w: %s from byte %d on was not to be had within %v: %w", ErrUnavailable, a.c.Name, off, a.wait, last)
		case err == nil: // another has fetched, or tried to
			continue
		case !errors.Is(err, ErrUnavailable):
			return err
		}
		last = err
		rest(within, pause/2+rand.N(pause))
		pause = min(2*pause, askAgainMost)
	}
}

// rest waits, until ctx ends at the latest.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// bring fetches what a piece lacks first, or waits for who does.
func (a *Arriving) bring(ctx context.Context, off, length int64) (there bool, err error) {
	a.mu.Lock()
	b, c, missing := a.missing(off, length)
	switch other := a.coming[c]; {
	case !missing:
		a.mu.Unlock()
		return true, nil
	case a.bad != nil:
		defer a.mu.Unlock()
		return false, a.bad
	case other != nil:
		a.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
		}
		return false, nil
	}
	sp := a.around(b, c)
	over := a.claim(sp.chunks)
	a.mu.Unlock()
	_, err = a.fetch(ctx, sp, over)
	return false, err
}

// around is the read of a block's chunk, with what follows in the file and lies beside it in the
// store. The mutex is held.
func (a *Arriving) around(block, c uint32) span {
	want := []uint32{c}
	off := int64(block) * int64(a.m.Block)
	a.each(off, min(missBlocks*int64(a.m.Block), a.c.Size-off), func(_, o uint32) bool {
		if o != c && !a.here[o] && a.coming[o] == nil {
			want = append(want, o)
		}
		return true
	})
	spans := a.m.spans(want, fillRange)
	return spans[slices.IndexFunc(spans, func(sp span) bool { return slices.Contains(sp.chunks, c) })]
}

// claim notes that chunks are being fetched by the caller. The mutex is held.
func (a *Arriving) claim(chunks []uint32) chan struct{} {
	over := make(chan struct{})
	for _, c := range chunks {
		a.coming[c] = over
	}
	return over
}

// fetch reads what was claimed, and returns how many bytes of that came from the store.
func (a *Arriving) fetch(ctx context.Context, sp span, over chan struct{}) (int64, error) {
	read, err := a.s.readSpan(ctx, a.m, sp, func(c uint32, data []byte) error {
		for _, b := range a.places[c] {
			if _, err := a.to.WriteAt(data, int64(b)*int64(a.m.Block)); err != nil {
				return err
			}
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.here[c] = true
		return nil
	})
	a.fetched.Add(read)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range sp.chunks {
		delete(a.coming, c)
	}
	if errors.Is(err, ErrFormat) || errors.Is(err, ErrNotThere) {
		a.bad = err
	}
	close(over)
	return read, err
}

// gate is closed while somebody waits for a part of whatever is arriving: of memory or of a root disk, of any
// snapshot, since all of it shares the way from the store. Fill asks for nothing new meanwhile.
type gate struct {
	mu    sync.Mutex
	who   int           // guarded by mu: how many wait
	opens chan struct{} // guarded by mu: closed when nobody waits any more; nil: nobody does
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.who++; g.who == 1 {
		g.opens = make(chan struct{})
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.who--; g.who == 0 {
		close(g.opens)
		g.opens = nil
	}
}

// pass returns when nobody waits.
func (g *gate) pass(ctx context.Context) error {
	for {
		g.mu.Lock()
		opens := g.opens
		g.mu.Unlock()
		if opens == nil {
			return nil
		}
		select {
		case <-opens:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Fill fetches all that is not here yet, after what anybody waits for of this store, and calls came, which may be nil,
// whenever something has come, from several goroutines. Errors wrap ErrUnavailable, ErrNotThere or
// ErrFormat, or are the file's; it can be called again.
func (a *Arriving) Fill(ctx context.Context, came func()) error {
	spans := a.m.spans(a.absent(), fillRange)
	g, filling := errgroup.WithContext(ctx)
	g.SetLimit(fillReads)
	for _, sp := range spans {
		if filling.Err() != nil {
			break
		}
		g.Go(func() error { return a.fill(filling, sp, came) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (a *Arriving) absent() []uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.chunks), func(c uint32) bool { return a.here[c] })
}

// fill fetches of a span what nobody else has fetched meanwhile, and waits for what others do.
func (a *Arriving) fill(ctx context.Context, sp span, came func()) error {
	for want := sp.chunks; len(want) > 0; {
		if err := a.s.waiting.pass(ctx); err != nil {
			return err
		}
		a.mu.Lock()
		var mine []uint32
		var other chan struct{}
		for _, c := range want {
			switch coming := a.coming[c]; {
			case a.here[c]:
			case coming != nil:
				other = coming
			default:
				mine = append(mine, c)
			}
		}
		if bad := a.bad; bad != nil {
			a.mu.Unlock()
			return bad
		}
		if len(mine) == 0 {
			a.mu.Unlock()
			if other == nil {
				return nil
			}
			select {
			case <-other:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		now := a.m.spans(mine, fillRange)[0]
		over := a.claim(now.chunks)
		a.mu.Unlock()
		read, err := a.fetch(ctx, now, over)
		if err == nil && read > 0 && came != nil { // now: it says that the store answers
			came()
		}
		if err == nil { // what the cache had is not held back
			err = a.s.filling.WaitN(ctx, int(min(read, fillRange)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Arrived says how far a file is.
type Arrived struct {
	Done, Total int64         // bytes of content, without zeros
	Fetched     int64         // bytes that came from the store,
	Stored      int64         // of so many that it has of it
	Waits       int64         // times that somebody waited for a part of it,
	Waited      time.Duration // for so long in all
}

// Progress says how far the file is.
func (a *Arriving) Progress() Arrived {
	out := Arrived{Fetched: a.fetched.Load(), Stored: a.stored, Waits: a.waits.Load(), Waited: time.Duration(a.waited.Load())}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.chunks {
		n := int64(a.m.Chunks[c].Size) * int64(len(a.places[c]))
		out.Total += n
		if a.here[c] {
			out.Done += n
		}
	}
	return out
}
