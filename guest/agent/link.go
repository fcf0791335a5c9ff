package agent

import (
	"net"
	"sync"

	"github.com/skep-dev/skep/guest"
)

// link is one connection to the host.
type link struct {
	conn  net.Conn
	agent *Agent
	mu    sync.Mutex // guards writes: frames are whole
	ended chan struct{}
	once  sync.Once
}

func newLink(c net.Conn, a *Agent) *link {
	l := &link{conn: c, agent: a, ended: make(chan struct{})}
	started, ready, _ := a.fn.state()
	if err := l.send(guest.KindHello, guest.Hello{Version: Version, Started: started, Ready: ready}); err != nil {
		l.close()
		return l
	}
	go l.read()
	go l.tell()
	return l
}

func (l *link) close() {
	l.once.Do(func() { close(l.ended); l.conn.Close(); l.agent.out.wake() })
}

func (l *link) send(k guest.Kind, v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return guest.WriteJSON(l.conn, k, v)
}

// read answers the host's frames, one after the other.
func (l *link) read() {
	defer l.close()
	buf := make([]byte, guest.MaxPayload)
	for {
		k, p, err := guest.ReadFrame(l.conn, buf)
		if err != nil {
			return
		}
		var d guest.Done
		if err := l.agent.handle(l, k, p); err != nil {
			d.Error = err.Error()
		}
		if l.send(guest.KindDone, d) != nil {
			return
		}
	}
}

// tell sends the function's output, and that it is ready or has ended.
func (l *link) tell() {
	defer l.close()
	_, toldReady, _ := l.agent.fn.state()
	for {
		c, ok := l.agent.out.next(l.ended)
		if !ok {
			return
		}
		var err error
		switch {
		case c.data != nil:
			l.mu.Lock()
			err = guest.WriteFrame(l.conn, c.kind, c.data)
			l.mu.Unlock()
		case c.dropped > 0:
			err = l.send(guest.KindDropped, guest.Dropped{Bytes: c.dropped})
		default: // the state has changed
			_, ready, exit := l.agent.fn.state()
			if ready && !toldReady {
				toldReady = true
				err = l.send(guest.KindReady, nil)
			}
			if err == nil && exit != "" {
				err = l.send(guest.KindExit, guest.Exit{Status: exit})
			}
		}
		if err != nil {
			return
		}
	}
}
