package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// processes are those that the host runs beside the function, and the copies that
// it makes. A guest that is restored touches none of this.
type processes struct {
	fn      *function
	watches watches

	mu     sync.Mutex // guards what follows
	frozen bool       // a snapshot is being made, or this is a clone that has not been told so
	byID   map[string]*process
	conns  map[*execConn]struct{}
	kept   []*process // have ended, and nobody has been told; the oldest first
	groups []*os.File // of processes that have left others behind
	idle   *sync.Cond // byID or conns has become smaller
}

func newProcesses(f *function) *processes {
	s := &processes{fn: f}
	s.idle = sync.NewCond(&s.mu)
	return s
}

// execConn is one connection to the host. Its last frame is the last that is
// written to it, whoever else may want to write.
type execConn struct {
	net.Conn
	mu   sync.Mutex // guards writes and done
	done bool
}

var errDone = errors.New("the connection has had its last frame")

// filled writes a frame whose payload stands in b after guest.HeadLen bytes.
func (c *execConn) filled(k guest.Kind, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return errDone
	}
	err := guest.WriteFilled(c.Conn, k, b)
	c.done = err != nil // the host may have a part of it
	return err
}

func (c *execConn) frame(k guest.Kind, payload []byte) error {
	return c.filled(k, append(make([]byte, guest.HeadLen, guest.HeadLen+len(payload)), payload...))
}

// last writes the last frame. The connection is closed when the host has closed
// it, which it does when it has this: an earlier close could take it away.
func (c *execConn) last(k guest.Kind, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return errDone
	}
	c.done = true
	if err := guest.WriteFrame(c.Conn, k, payload); err != nil {
		c.Conn.Close()
		return err
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerLimit))
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the host sees the end after the frame; if not, the frame says it
	}
	return nil
}

const (
	lingerLimit = 10 * time.Second // for the host to close a connection that has had its last frame
	firstLimit  = 30 * time.Second // for the first frame
)

// serve is the life of one connection.
func (s *processes) serve(conn net.Conn) {
	c := &execConn{Conn: conn}
	defer conn.Close()
	if err := s.enter(c); err != nil {
		s.refuse(c, guest.RefusedBusy, err)
		drain(c)
		return
	}
	defer s.leave(c)
	_ = conn.SetReadDeadline(time.Now().Add(firstLimit))
	k, p, err := guest.ReadFrame(conn, guest.FromExecHost, nil)
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	switch k {
	case guest.KindExec:
		s.exec(c, p)
	case guest.KindAttach:
		s.attach(c, string(p))
	case guest.KindCopyIn:
		s.copyIn(c, string(p))
	case guest.KindDeliver:
		s.deliver(c, string(p))
	case guest.KindCopyOut:
		s.copyOut(c, string(p))
	case guest.KindWatch:
		s.watch(c, string(p))
	}
	drain(c)
}

// drain reads what the host still sends until it closes the connection, if that
// has had its last frame: what is not read would make of the end a reset.
func drain(c *execConn) {
	c.mu.Lock()
	done := c.done
	c.mu.Unlock()
	if !done {
		return
	}
	buf := make([]byte, 512)
	for {
		if _, err := c.Conn.Read(buf); err != nil {
			return
		}
	}
}

func (s *processes) enter(c *execConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns)+len(s.byID) >= 2*guest.MaxProcesses || len(s.conns) >= guest.MaxProcesses {
		return fmt.Errorf("this guest has %d connections for processes and copies: at most %d are allowed", len(s.conns), guest.MaxProcesses)
	}
	if s.conns == nil {
		s.conns, s.byID = map[*execConn]struct{}{}, map[string]*process{}
	}
	s.conns[c] = struct{}{}
	return nil
}

func (s *processes) leave(c *execConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.idle.Broadcast()
}

func (s *processes) refuse(c *execConn, why guest.Refusal, err error) {
	_ = c.last(guest.KindRefused, (&guest.RefusedError{Why: why, Text: err.Error()}).Encode()) // else the host is gone
}

// exec starts a process and serves its connection.
func (s *processes) exec(c *execConn, payload []byte) {
	var spec guest.Process
	err := guest.Decode(payload, &spec)
	if err == nil {
		err = spec.Validate()
	}
	var p *process
	if err == nil {
		p, err = s.start(spec)
	}
	if err != nil {
		s.refuse(c, refusal(err), err)
		return
	}
	p.attach(c)
	p.serve(c)
}

func (s *processes) attach(c *execConn, id string) {
	s.mu.Lock()
	p := s.byID[id]
	s.mu.Unlock()
	if p == nil {
		s.refuse(c, guest.RefusedNoProcess, fmt.Errorf("no process %q runs in this guest, and none has ended that nobody was told of", id))
		return
	}
	p.attach(c)
	p.serve(c)
}

// refusedError gives an error its class.
type refusedError struct {
	why guest.Refusal
	error
}

func (e refusedError) Unwrap() error { return e.error }

func refusal(err error) guest.Refusal {
	var r refusedError
	if errors.As(err, &r) {
		return r.why
	}
	return guest.RefusedOther
}

// start runs a process, to which nobody is attached yet.
func (s *processes) start(spec guest.Process) (*process, error) {
	// One at a time, and none while the group freezes: a child that is frozen before
	// its program runs would hold the agent with it.
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.frozen:
		return nil, errors.New("the guest is frozen: a snapshot is made of it, or it is a clone that does not know so yet")
	case s.byID[spec.ID] != nil && !s.byID[spec.ID].isTold():
		return nil, refusedError{guest.RefusedBusy, fmt.Errorf("a process %q runs already, or has ended and nobody was told", spec.ID)}
	case len(s.byID) >= guest.MaxProcesses:
		return nil, refusedError{guest.RefusedBusy, fmt.Errorf("%d processes run in this guest beside the function: at most that many are allowed", len(s.byID))}
	}
	s.sweep()
	p := newProcess(s, spec)
	if err := p.start(); err != nil {
		return nil, err
	}
	if old := s.byID[spec.ID]; old != nil {
		old.abandon() // who was told of its end has noted it, though that is still on its way
	}
	s.byID[spec.ID] = p
	return p, nil
}

// sweep removes groups that have become empty. The mutex is held.
func (s *processes) sweep() {
	left := s.groups[:0]
	for _, g := range s.groups {
		if err := os.Remove(g.Name()); errors.Is(err, unix.EBUSY) {
			left = append(left, g)
			continue
		}
		g.Close()
	}
	s.groups = left
}

// forget drops a process for good; what it has left running goes on.
func (s *processes) forget(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[p.spec.ID] == p { // and not another that has its id by now
		delete(s.byID, p.spec.ID)
	}
	if i := slices.Index(s.kept, p); i >= 0 {
		s.kept = slices.Delete(s.kept, i, i+1)
	}
	if p.group != nil {
		s.groups = append(s.groups, p.group)
		s.sweep()
	}
	s.idle.Broadcast()
}

// keep notes that a process has ended that nobody is attached to. Of too many the
// oldest is forgotten.
func (s *processes) keep(p *process) {
	s.mu.Lock()
	if s.byID[p.spec.ID] == p && !slices.Contains(s.kept, p) { // it may be forgotten already
		s.kept = append(s.kept, p)
	}
	var oldest *process
	if len(s.kept) > guest.MaxKept {
		oldest = s.kept[0]
	}
	s.mu.Unlock()
	if oldest != nil {
		oldest.abandon()
	}
}

// snapshotReason is what the host is told of processes whose connection ends.
const snapshotReason = "a snapshot is made of the guest"

// prepareLimit bounds how long a snapshot waits for what the host has run here to
// end.
const prepareLimit = 10 * time.Second

// prepare ends all connections, so that no clone wakes up with half of one, and
// all processes that nobody wants kept: they belong to one client, and not to the
// function. Nothing starts from then on until thawed.
func (s *processes) prepare() error {
	s.mu.Lock()
	s.frozen = true
	var all []*process
	for _, p := range s.byID {
		all = append(all, p)
	}
	conns := len(s.conns)
	s.mu.Unlock()
	if len(all)+conns == 0 {
		return nil
	}
	for _, p := range all {
		p.detach(nil, snapshotReason)
		if !p.spec.Keep {
			p.kill()
			p.abandon()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns { // copies, and what has not said yet what it is
		go s.refuse(c, guest.RefusedOther, errors.New(snapshotReason))
	}
	late := time.AfterFunc(prepareLimit, s.idle.Broadcast)
	defer late.Stop()
	cut := time.AfterFunc(drainLimit, s.cut)
	defer cut.Stop()
	for end := time.Now().Add(prepareLimit); ; s.idle.Wait() {
		left := len(s.conns)
		for _, p := range s.byID {
			if !p.spec.Keep {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if !time.Now().Before(end) {
			s.frozen = false
			return fmt.Errorf("%d processes and copies beside the function have not ended within %v", left, prepareLimit)
		}
	}
}

// cut ends the connections that are left, whose other end takes nothing.
func (s *processes) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // no end that a clone would send once more
		}
		c.Conn.Close()
	}
}

// thawed lets processes start again.
func (s *processes) thawed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = false
}
