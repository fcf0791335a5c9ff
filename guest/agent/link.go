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
	if err := l.frame(guest.KindHello, guest.Hello{Version: Version, Started: started, Ready: ready}.Encode()); err != nil {
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

func (l *link) frame(k guest.Kind, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return guest.WriteFrame(l.conn, k, payload)
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
		var problem []byte
		if err := l.agent.handle(l, k, p); err != nil {
			problem = []byte(err.Error())
		}
		if l.frame(guest.KindDone, problem) != nil {
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
			err = l.frame(c.kind, c.data)
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
