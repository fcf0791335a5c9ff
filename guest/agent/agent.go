// Package agent is the logic of PID 1 in the guest: it makes the machine a
// place to run in, starts the function's server, passes on what it writes, and,
// in a clone, renews what clones must not share. It is not on the way of a
// request's bytes, and it touches as little memory as it can after a restore.
package agent

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// Version is the agent's. It is in the manifest of every snapshot.
const Version = "3"

// Agent is the state of PID 1 after the machine has been set up.
type Agent struct {
	out  *output
	fn   *function
	link link
}

// Run sets the machine up and serves the host. It only returns on a fatal error.
func Run() error {
	if err := setUp(); err != nil {
		return err
	}
	a := &Agent{out: newOutput()}
	a.fn = newFunction(a.out)
	go a.fn.reap()
	go a.tell()
	return a.serve()
}

// serve is one thread that waits in poll for a new connection and for the
// host's next frame. The code that answers a clone's first message is the first
// that runs after a restore: it calls the kernel itself, since a goroutine for
// each and the runtime's own poller would be several times as much to page in.
func (a *Agent) serve() error {
	runtime.LockOSThread()
	l, err := listen()
	if err != nil {
		return fmt.Errorf("listening for the host: %w", err)
	}
	fds := []unix.PollFd{{Fd: int32(l), Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN}}
	in := newFrames()
	for {
		fds[1].Fd = int32(a.link.descriptor())
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("waiting for the host: %w", err)
		}
		switch {
		case fds[0].Revents != 0:
			if c, err := accept(l); err == nil {
				in.reset()
				a.link.replace(c)
				a.greet()
			}
		case fds[1].Revents != 0:
			if err := in.read(int(fds[1].Fd), a.answer); err != nil {
				a.link.close()
			}
		}
	}
}

// greet says hello on a new connection.
func (a *Agent) greet() {
	started, ready, _ := a.fn.state()
	if a.link.frame(guest.KindHello, guest.Hello{Version: Version, Started: started, Ready: ready}.Encode()) != nil {
		a.link.close()
	}
}

// answer handles a frame of the host.
func (a *Agent) answer(k guest.Kind, p []byte) error {
	var problem []byte
	if err := a.handle(k, p); err != nil {
		problem = []byte(err.Error())
	}
	return a.link.frame(guest.KindDone, problem)
}

// tell sends the function's output, and that it is ready or has ended, on
// whatever connection there is.
func (a *Agent) tell() {
	toldReady := false
	for {
		c := a.out.next()
		switch {
		case c.data != nil:
			a.link.frame(c.kind, c.data)
		case c.dropped > 0:
			a.link.json(guest.KindDropped, guest.Dropped{Bytes: c.dropped})
		default: // the state has changed
			_, ready, exit := a.fn.state()
			if ready && !toldReady {
				toldReady = true
				a.link.frame(guest.KindReady, nil)
			}
			if exit != "" {
				a.link.json(guest.KindExit, guest.Exit{Status: exit})
			}
		}
	}
}

// handle does what a frame of the host asks for.
func (a *Agent) handle(k guest.Kind, p []byte) error {
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
		return a.fn.clone(c)
	case guest.KindPrepare:
		return a.prepare()
	case guest.KindStop:
		var s guest.Stop
		if err := guest.Decode(p, &s); err != nil {
			return err
		}
		return a.fn.stop(time.Duration(s.GraceMillis) * time.Millisecond)
	}
	return fmt.Errorf("unknown frame of kind %d", k)
}
