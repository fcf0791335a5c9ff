package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Slots is a Pool of real namespaces. Its methods may be called from many
// goroutines.
type Slots struct {
	opts Options
	log  *slog.Logger
	home *os.File // the daemon's own namespace
	nat  nat

	kick chan struct{} // wakes the keeper: a slot was taken or asked for
	stop chan struct{} // closed by Close
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	// held counts the slots that are lent, being made for a Take or on their way
	// back. When it is zero and the pool closed, what all slots share goes too.
	held    int
	making  int // slots being made for a Take: the keeper stays out of the way
	indices map[int]bool
	free    map[string][]*space
	wanted  map[string]bool // kinds of egress that are made ahead
	left    []Leftover
}

var _ Pool = (*Slots)(nil)

// ErrClosed is returned by Take after Close.
var ErrClosed = errors.New("the pool of network slots is closed")

// Open removes what an earlier daemon with the same prefix left, except
// namespaces that have processes in them (Leftovers), and begins to make slots
// ahead. It needs root.
func Open(ctx context.Context, opts Options) (*Slots, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("opening the network: %w", err)
	}
	home, err := os.Open(ownThread)
	if err != nil {
		return nil, fmt.Errorf("opening the network: %w", err)
	}
	s := &Slots{
		opts: opts, log: opts.Logger, home: home,
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
		indices: make(map[int]bool), free: make(map[string][]*space),
		wanted: map[string]bool{egressNone: true},
	}
	s.nat.init(opts)
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the network: %w", err), home.Close())
	}
	s.work.Go(s.keep)
	return s, nil
}

func (s *Slots) prepare(ctx context.Context) error {
	if err := prepareNetNSDir(); err != nil {
		return err
	}
	if err := s.reclaim(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// Leftovers are the namespaces of an earlier daemon that Open found with
// processes in them, and left alone. Whoever owns the processes should end them
// before Open. Close removes those that are empty by then.
func (s *Slots) Leftovers() []Leftover {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Leftover(nil), s.left...)
}

// Take lends a slot: one that is ready, else a new one. When ctx ends first,
// the new one is kept for the next Take.
func (s *Slots) Take(ctx context.Context, egress string) (*Slot, error) {
	switch egress {
	case egressNone, egressNAT:
		return s.take(ctx, egress)
	case egressHost: // a slot without egress, until services are opened in it
		slot, err := s.take(ctx, egressNone)
		if err == nil {
			err = s.serve(slot.lease)
		}
		if err != nil {
			s.Give(slot)
			return nil, err
		}
		return slot, nil
	}
	return nil, fmt.Errorf("taking a network slot: egress %q: want %q, %q or %q", egress, egressNone, egressHost, egressNAT)
}

func (s *Slots) take(ctx context.Context, egress string) (*Slot, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	defer s.wake()
	s.wanted[egress] = true
	s.held++
	if idle := s.free[egress]; len(idle) > 0 {
		p := idle[len(idle)-1] // the one whose state is likeliest in the caches
		s.free[egress] = idle[:len(idle)-1]
		s.mu.Unlock()
		return s.lend(p), nil
	}
	s.making++
	s.work.Add(1) // under the lock: Close has not begun to wait
	s.mu.Unlock()
	return s.takeNew(ctx, egress)
}

func (s *Slots) takeNew(ctx context.Context, egress string) (*Slot, error) {
	type result struct {
		space *space
		err   error
	}
	made := make(chan result)
	go func() {
		defer s.work.Done()
		p, err := s.create(egress)
		s.mu.Lock()
		s.making--
		s.mu.Unlock()
		select {
		case made <- result{p, err}:
		case <-ctx.Done():
			if err == nil {
				s.shelve(p)
			}
			s.wake()
			s.letGo()
		}
	}()
	select {
	case r := <-made:
		if r.err != nil {
			s.letGo()
			return nil, r.err
		}
		return s.lend(r.space), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("taking a network slot: %w", context.Cause(ctx))
	}
}

func (s *Slots) lend(p *space) *Slot {
	return &Slot{Name: p.name, NetNS: p.path(), Tap: tapName, Index: p.index,
		impl: impl{&lease{slots: s, space: p, ended: make(chan struct{})}}}
}

// create builds a space with the smallest free index.
func (s *Slots) create(egress string) (*space, error) {
	index := s.reserve()
	began := time.Now()
	p, err := s.build(index, egress)
	if err != nil {
		s.release(index)
		return nil, err
	}
	s.log.Debug("network slot made", "slot", p.name, "egress", egress, "duration", time.Since(began))
	return p, nil
}

func (s *Slots) reserve() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := 0
	for s.indices[index] {
		index++
	}
	s.indices[index] = true
	return index
}

func (s *Slots) release(index int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.indices, index)
}

// Give takes a slot back. Cleaning is done behind it, or, after Close, before it
// returns. A second Give of the same Slot does nothing.
func (s *Slots) Give(slot *Slot) {
	if slot == nil || slot.lease == nil || slot.lease.slots != s || !slot.lease.end() {
		return
	}
	p := slot.lease.space
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.discard(p)
		s.letGo()
		return
	}
	defer s.mu.Unlock()
	s.work.Go(func() {
		s.takeBack(p)
		s.wake()
		s.letGo()
	})
}

func (s *Slots) takeBack(p *space) {
	s.mu.Lock()
	reuse := !s.closed && p.egress == egressNone && len(s.free[p.egress]) < s.opts.Keep
	s.mu.Unlock()
	if !reuse {
		s.discard(p)
		return
	}
	if err := s.clean(p); err != nil {
		s.log.Warn("network slot cannot be made clean, destroying it", "slot", p.name, "error", err)
		s.discard(p)
		return
	}
	s.shelve(p)
}

// shelve puts a clean space among those that wait for a Take.
func (s *Slots) shelve(p *space) {
	s.mu.Lock()
	if !s.closed && len(s.free[p.egress]) < s.opts.Keep {
		s.free[p.egress] = append(s.free[p.egress], p)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.discard(p)
}

// discard destroys a space that nobody has. What cannot be destroyed keeps its
// index, so that nothing new runs into it; the next Open tries again.
func (s *Slots) discard(p *space) {
	if err := s.destroy(p); err != nil {
		s.log.Error("network slot could not be removed", "slot", p.name, "error", err)
	} else {
		s.release(p.index)
	}
}

func (s *Slots) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// keep makes slots ahead, one at a time, until Close.
func (s *Slots) keep() {
	var retry <-chan time.Time
	for {
		for egress, ok := s.short(); ok; egress, ok = s.short() {
			p, err := s.create(egress)
			if err != nil {
				s.log.Error("network slot could not be made ahead", "egress", egress, "error", err)
				retry = time.After(time.Second)
				break
			}
			s.shelve(p)
		}
		select {
		case <-s.stop:
			return
		case <-retry:
		case <-s.kick:
		}
	}
}

// short says which kind of slot is lacking, if any.
func (s *Slots) short() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.making > 0 {
		return "", false
	}
	for _, egress := range []string{egressNone, egressNAT} {
		if s.wanted[egress] && len(s.free[egress]) < s.opts.Ahead {
			return egress, true
		}
	}
	return "", false
}

// Close destroys all slots that are not lent, and what of the host's NAT
// nobody uses any more. A lent slot goes when it is given back.
func (s *Slots) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.work.Wait()
		return nil
	}
	s.closed = true
	s.held++ // by Close itself
	close(s.stop)
	idle := append(s.free[egressNone], s.free[egressNAT]...)
	clear(s.free)
	s.mu.Unlock()

	errs := make([]error, len(idle))
	var wg sync.WaitGroup
	for i, p := range idle {
		wg.Go(func() { errs[i] = s.destroy(p) })
	}
	wg.Wait()
	s.work.Wait()
	errs = append(errs, s.removeLeftovers(), s.drop())
	return errors.Join(errs...)
}

// letGo is drop for those who cannot return an error.
func (s *Slots) letGo() {
	if err := s.drop(); err != nil {
		s.log.Error("closing the network", "error", err)
	}
}

// drop counts one slot as no longer held. The last one of a closed pool takes
// with it what all share.
func (s *Slots) drop() error {
	s.mu.Lock()
	s.held--
	last := s.closed && s.held == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	return errors.Join(s.nat.remove(), s.home.Close())
}
