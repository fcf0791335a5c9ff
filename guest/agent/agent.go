// Package agent is the logic of PID 1 in the guest: it makes the machine a
// place to run in, starts the function's server, passes on what it writes, and,
// in a clone, renews what clones must not share. It is not on the way of a
// request's bytes, and it touches as little memory as it can after a restore.
package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// Version is the agent's. It is in the manifest of every snapshot.
const Version = "10"

// Agent is the state of PID 1 after the machine has been set up.
type Agent struct {
	out   *output
	fn    *function
	procs *processes
	links chan net.Conn
}

// Run sets the machine up and serves the host. It only returns on a fatal error.
func Run() error {
	if err := setUp(); err != nil {
		return err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: guest.Address, Port: guest.AgentPort})
	if err != nil {
		return fmt.Errorf("listening for the host: %w", err)
	}
	further, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: guest.Address, Port: guest.ExecPort})
	if err != nil {
		return fmt.Errorf("listening for further processes: %w", err)
	}
	a := &Agent{out: newOutput(), links: make(chan net.Conn)}
	a.fn = newFunction(a.out, root)
	a.procs = newProcesses(a.fn)
	go a.fn.reap()
	go accept(l, func(c *net.TCPConn) { a.links <- c })
	go accept(further, func(c *net.TCPConn) { go a.procs.serve(c) })
	return a.serve()
}

// accept hands on connections from the host, and nobody else's.
func accept(l *net.TCPListener, to func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			fmt.Fprintln(os.Stderr, "skep-agent: accepting:", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors, perhaps: do not spin
			continue
		}
		if p, ok := c.RemoteAddr().(*net.TCPAddr); !ok || !p.IP.Equal(guest.Gateway) {
			c.Close()
			continue
		}
		to(c)
	}
}

// serve keeps one link at a time: the newest. A restored guest still holds the
// link of the machine that was snapshotted.
func (a *Agent) serve() error {
	var now *link
	for c := range a.links {
		if now != nil {
			now.close()
		}
		now = newLink(c, a)
	}
	return errors.New("no more links")
}

// handle does what a frame of the host asks for.
func (a *Agent) handle(l *link, k guest.Kind, p []byte) error {
	switch k {
	case guest.KindStart:
		var s guest.Start
		if err := guest.Decode(p, &s); err != nil {
			return err
		}
		return a.fn.start(s)
	case guest.KindClone:
		c, err := guest.DecodeClone(p)
		if err != nil {
			return err
		}
		if err := a.fn.clone(c); err != nil {
			return err
		}
		a.procs.thawed()
		return nil
	case guest.KindPrepare:
		return a.prepare(l)
	case guest.KindStop:
		var s guest.Stop
		if err := guest.Decode(p, &s); err != nil {
			return err
		}
		return a.fn.stop(time.Duration(s.GraceMillis) * time.Millisecond)
	}
	return fmt.Errorf("unknown frame of kind %d", k)
}

// drainLimit bounds how long a snapshot waits for a host that takes no output.
const drainLimit = time.Second

// prepare ends what the host runs beside the function, freezes that and flushes what a snapshot should not hold half
// done. The host closes
// the link when it has the answer. From before the answer on, nothing is sent
// any more but that: it would be lost, while in the queue it is there for the
// clones' first link.
func (a *Agent) prepare(l *link) error {
	err := a.procs.prepare()
	if err == nil {
		err = a.fn.rehearse()
	}
	if err == nil { // its processes open nothing more
		err = a.procs.watches.end()
	}
	if err == nil { // which would be seen as if one of them did
		err = a.fn.rehearseFiles(a.procs.watches.paths)
	}
	if err != nil {
		err = errors.Join(err, a.fn.group.thaw())
		a.procs.thawed()
		return err
	}
	select {
	case <-a.out.drained():
	case <-l.ended:
	case <-time.After(drainLimit): // the rest stays in the queue
	}
	a.out.hold(l.ended)
	unix.Sync()
	return nil
}
