package remotetest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Link passes TCP connections on to an address as a network would: whatever goes one way arrives
// half of RTT later, and all together no faster than Rate. Kernels without netem have nothing for that.
type Link struct {
	RTT  time.Duration
	Rate int64 // bytes a second, each way
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

// Before listens in front of an address until the test ends, and returns where.
func (l Link) Before(t testing.TB, address string) string {
	t.Helper()
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	there, back := &lane{l: l}, &lane{l: l}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn // guarded by mu
	wg.Go(func() {
		for {
			a, err := in.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", address)
			if err != nil {
				a.Close()
				continue
			}
			mu.Lock()
			open = append(open, a, b)
			mu.Unlock()
			wg.Go(func() { there.carry(b, a) })
			wg.Go(func() { back.carry(a, b) })
		}
	})
	t.Cleanup(func() {
		in.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return in.Addr().String()
}

// piece is what is under way.
type piece struct {
	data []byte
	due  time.Time
}

// carry takes what comes from one end to the other, until either closes.
func (w *lane) carry(to, from net.Conn) {
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
			way <- piece{buf[:n], w.arrives(n)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	wg.Wait()
}
