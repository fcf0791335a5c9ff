package guest

import (
	"time"
)

// How a guest's clock is kept. The time in a Clone is old when the guest has
// read it, since a clone must bring in all the memory that this takes. So it is
// told the time again when it is warm, and off the way of the first request.
const (
	clockEvery  = 30 * time.Second     // how often a guest is told the time while it runs: clocks drift
	clockGood   = 2 * time.Millisecond // a round trip that no other is tried to better
	clockRounds = 4                    // round trips at most, one after the other
	// Between them a guest has its processor for the first request, and what answers
	// the next is warm.
	clockPause = 250 * time.Millisecond
)

// ClockRange says where the guest's clock was, less the host's, when it was last
// told the time: between both. Twice the transfer's time lies between them.
type ClockRange struct{ Least, Most time.Duration }

// Clock returns what is known of the guest's clock; nothing, before it has been
// told the time. It is what the guest says, and so not to be relied upon.
func (s *Session) Clock() (r ClockRange, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clockRange == nil {
		return r, false
	}
	return *s.clockRange, true
}

// keepClock tells the guest the time, now and from then on, until the session
// ends or a snapshot is to be made. The first frame is written when it returns,
// so that the guest gets it before a request that is sent later.
//
// The guest moves its clock forward only, and a time that it is told has been:
// so its clock is not ahead of the host's, and behind by less than the fastest
// round trip.
func (s *Session) keepClock() {
	s.mu.Lock()
	if s.clockStop != nil {
		s.mu.Unlock()
		return // it is being kept
	}
	stop := make(chan struct{})
	s.clockStop = stop
	s.clockKept.Add(1)
	s.mu.Unlock()
	sent, err := s.tellTime()
	go func() {
		defer s.clockKept.Done()
		ticks := time.NewTicker(clockEvery)
		defer ticks.Stop()
		for err == nil && s.setClock(sent, stop) {
			select {
			case <-ticks.C:
			case <-stop:
				return
			case <-s.read:
				return
			}
			sent, err = s.tellTime()
		}
		// When a frame cannot be written, the reader says why.
	}()
}

// stopClock ends that.
func (s *Session) stopClock() {
	s.mu.Lock()
	if s.clockStop == nil {
		s.clockStop = make(chan struct{})
	}
	select {
	case <-s.clockStop:
	default:
		close(s.clockStop)
	}
	s.mu.Unlock()
	s.clockKept.Wait()
}

func (s *Session) tellTime() (sent time.Time, err error) {
	sent = time.Now()
	return sent, WriteFrame(s.conn, KindTime, EncodeTime(sent.UnixNano()))
}

// setClock takes the answer to a time that was sent, and tells it again as long
// as the round trips are slow. It returns false when it is to end.
func (s *Session) setClock(sent time.Time, stop <-chan struct{}) bool {
	var best *ClockRange
	for round := 1; ; round++ {
		var guest int64
		select {
		case guest = <-s.clock:
		case <-stop:
			return false
		case <-s.read:
			return false
		}
		now := time.Now()
		r := ClockRange{Least: time.Duration(guest - now.UnixNano()), Most: time.Duration(guest - sent.UnixNano())}
		if best == nil || r.Most-r.Least < best.Most-best.Least {
			best = &r
			s.mu.Lock()
			s.clockRange = best
			s.mu.Unlock()
		}
		if round == clockRounds || now.Sub(sent) < clockGood {
			return true
		}
		select {
		case <-time.After(clockPause):
		case <-stop:
			return false
		case <-s.read:
			return false
		}
		var err error
		if sent, err = s.tellTime(); err != nil {
			return false
		}
	}
}
