package agent

import (
	"fmt"
	"net"
	"os"
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
	// No larger than most frames: a clone has a page to fetch for each of it.
	buf := make([]byte, 512)
	for {
		k, p, err := guest.ReadFrame(l.conn, guest.FromHost, buf)
		if err != nil {
			return
		}
		if k == guest.KindTime {
			if l.setTime(p) != nil {
				return
			}
			continue
		}
		var problem []byte
		if err := l.agent.handle(l, k, p); err != nil {
			text := err.Error()
			problem = []byte(text[:min(len(text), maxProblem)])
		}
		if l.frame(guest.KindDone, problem) != nil {
			return
		}
	}
}

// setTime moves the clock forward to the host's, and says what it is then.
func (l *link) setTime(p []byte) error {
	t, err := guest.DecodeTime(p)
	if err != nil {
		return err
	}
	now, err := advanceClock(t)
	if err != nil {
		fmt.Fprintln(os.Stderr, "skep-agent:", err)
	}
	return l.frame(guest.KindClock, guest.EncodeTime(now))
}

// maxProblem bounds the text of an error that is sent, in bytes.
const maxProblem = 4 << 10

// tell sends the function's output, and that it is ready or has ended, until
// the link ends or a snapshot is about to be made.
func (l *link) tell() {
	_, toldReady, exit := l.agent.fn.state() // the hello has said ready
	if exit != "" {
		l.agent.out.stateChanged() // an earlier link may have been told, but not this one
	}
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
			toldReady, err = l.tellState(toldReady)
		}
		if err != nil {
			l.close()
			return
		}
	}
}

func (l *link) tellState(toldReady bool) (bool, error) {
	_, ready, exit := l.agent.fn.state()
	if ready && !toldReady {
		if err := l.frame(guest.KindReady, nil); err != nil {
			return false, err
		}
	}
	if exit != "" {
		return ready, l.send(guest.KindExit, guest.Exit{Status: exit})
	}
	return ready, nil
}
