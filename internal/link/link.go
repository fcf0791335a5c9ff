// Package link is a network in user space: a proxy of TCP that delays what passes and limits its rate, for kernels
// without netem. Tests of the object store and the experiment remote put it before an S3 server.
package link

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Link passes TCP connections on as a network would: whatever goes one way arrives half of RTT
// later, the first of a connection another RTT later, which its handshake would take, and all
// together no faster than Rate.
type Link struct {
	RTT  time.Duration `json:"rtt_ns"`
	Rate int64         `json:"bytes_per_s"` // each way
}

func (l Link) String() string { return fmt.Sprintf("%v, %g Gbit/s", l.RTT, float64(l.Rate)*8/1e9) }

// Proxy is a link that stands before an address.
type Proxy struct {
	in          net.Listener
	to          string
	rtt         time.Duration
	there, back *lane
	wg          sync.WaitGroup // of all goroutines

	mu     sync.Mutex
	open   map[net.Conn]bool // guarded by mu
	closed bool              // guarded by mu
}

// Open listens at a free port of loopback and passes connections on to an address, until Close.
func Open(l Link, address string) (*Proxy, error) {
	if l.Rate <= 0 || l.RTT < 0 {
		return nil, fmt.Errorf("a link of %v and %d bytes a second: want a rate, and no negative delay", l.RTT, l.Rate)
	}
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening before %s: %w", address, err)
	}
	p := &Proxy{in: in, to: address, rtt: l.RTT, there: &lane{l: l}, back: &lane{l: l}, open: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Address is where it listens.
func (p *Proxy) Address() string { return p.in.Addr().String() }

// Close ends all connections and waits until nothing is under way.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.in.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	p.mu.Lock()
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		a, err := p.in.Accept()
		if err != nil {
			return
		}
		began := time.Now()
		b, err := net.Dial("tcp", p.to)
		if err != nil {
			a.Close()
			continue
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			a.Close()
			b.Close()
			return
		}
		p.open[a], p.open[b] = true, true
		p.mu.Unlock()
		p.wg.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { p.there.carry(b, a, began.Add(p.rtt+p.rtt/2)) })
			both.Go(func() { p.back.carry(a, b, time.Time{}) })
			both.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.open, a)
			delete(p.open, b)
		})
	}
}

// lane is one way of a link.
type lane struct {
	l    Link
	mu   sync.Mutex
	free time.Time // guarded by mu: when the last of what was sent has left
}

// arrives says when so many bytes that are sent now arrive.
func (w *lane) arrives(n int) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / float64(w.l.Rate) * float64(time.Second)))
	return w.free.Add(w.l.RTT / 2)
}

// piece is what is under way.
type piece struct {
	data []byte
	due  time.Time
}

// carry takes what comes from one end to the other, until either closes; nothing arrives before first.
func (w *lane) carry(to, from net.Conn, first time.Time) {
	// As much as a network holds: beyond that the sender waits.
	way := make(chan piece, 256)
	var wg sync.WaitGroup
	wg.Go(func() {
		dead := false
		for p := range way {
			if time.Sleep(time.Until(p.due)); dead {
				continue
			}
			if _, err := to.Write(p.data); err != nil {
				dead = true
				from.Close()
			}
		}
		to.Close()
	})
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			due := w.arrives(n)
			if due.Before(first) {
				due = first
			}
			way <- piece{buf[:n], due}
		}
		if err != nil {
			break
		}
	}
	close(way)
	wg.Wait()
}
