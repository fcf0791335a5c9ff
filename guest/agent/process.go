package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// process is one that the host runs beside the function.
type process struct {
	all   *processes
	spec  guest.Process
	pid   int
	group *os.File // its cgroup, of all that it starts; nil in tests
	oom   int64    // processes that had ended for want of memory when it began
	// The signal in whose place it was sent SIGKILL; guarded by function.mu, and by its
	// being reaped.
	endedBy unix.Signal
	*streams
	pumps sync.WaitGroup // what passes on its output

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // any of it has changed
	conn    *execConn  // nil: nobody is attached
	room    outputRoom // that the host at conn has
	exit    *guest.ProcessExit
	told    bool    // of its end, over a connection that may not have brought it
	noted   bool    // the host knows of its end
	left    bool    // nobody will ask any more
	queue   []input // for stdin
	eof     bool    // ends after it
}

func newProcess(all *processes, spec guest.Process) *process {
	p := &process{all: all, spec: spec}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// start runs it. When that fails nothing is held.
func (p *process) start() error {
	f := p.all.fn
	f.mu.Lock() // until it is noted whose pid that is: it may end at once
	defer f.mu.Unlock()
	if !f.started {
		return errors.New("this guest was not started yet: it has no root to run anything in")
	}
	if f.pids != nil {
		if p.spec.Init {
			return errors.New("the first process of this guest's PID namespace was started before: there can be one")
		}
		if _, runs := f.children[f.pids.first]; !runs {
			return errors.New("the first process of this guest's PID namespace has ended: nothing runs in there any more")
		}
	}
	l, err := launchOf(f, &p.spec)
	if err != nil {
		return err
	}
	defer l.dir.Close()
	if p.streams, err = openStreams(f.root, &p.spec); err != nil {
		return err
	}
	defer p.closeChild()
	l.streams, l.tty = p.child, p.spec.TTY
	if f.group != nil {
		if p.group, err = f.group.below(); err != nil {
			return errors.Join(err, p.closeOwn())
		}
		l.group, p.oom = p.group, f.group.killed()
		if p.spec.Neighbours {
			f.group.shareLoopback()
		}
	}
	if l.init {
		p.pid, err = f.forkInit(l, p.spec.Rlimits)
	} else {
		p.pid, err = l.forkLimited(p.spec.Rlimits, nil)
	}
	if err != nil {
		err = unrunnable(explain(f.root, l.workDir, l.path, err))
		if p.group != nil {
			err = errors.Join(err, os.Remove(p.group.Name()), p.group.Close())
		}
		return errors.Join(err, p.closeOwn())
	}
	score := 500 // as the function has it
	if p.spec.OOMScoreAdj != nil {
		score = *p.spec.OOMScoreAdj
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), fmt.Append(nil, score), 0) // it may have ended already
	f.children[p.pid] = p.reaped
	for _, o := range p.out {
		p.pumps.Go(func() { p.pump(o) })
	}
	if p.stdin != nil {
		go p.feed()
	}
	go p.run()
	return nil
}

// launchOf looks up in the function's root what the process needs. It opens the
// launch's dir.
func launchOf(f *function, spec *guest.Process) (l launch, err error) {
	l = launch{root: f.root, argv: spec.Argv, files: f.files, pids: f.pids, init: spec.Init}
	if l.who, err = userOf(f, spec); err != nil {
		return l, refusedError{guest.RefusedUser, err}
	}
	dir := spec.Dir
	if dir == "" {
		dir = f.spec.Dir
	}
	if l.dir, l.workDir, err = dirOf(f.root, dir, spec.MakeDir); err != nil {
		return l, refusedError{guest.RefusedDirectory, err}
	}
	l.env = environment(f.spec, l.who, spec.Env...)
	if l.path, err = lookPath(f.root, l.workDir, spec.Argv[0], l.env); err != nil {
		return l, errors.Join(refusedError{guest.RefusedNotFound, err}, l.dir.Close())
	}
	caps, err := capabilitiesOf(spec.Capabilities)
	if err != nil {
		return l, errors.Join(err, l.dir.Close())
	}
	if caps != nil || spec.NoNewPrivileges || spec.Umask != nil {
		l.own = &attributes{umask: spec.Umask, noNewPrivileges: spec.NoNewPrivileges, caps: caps}
	}
	return l, nil
}

// userOf is who the process runs as: whom it names, or the function's user.
func userOf(f *function, spec *guest.Process) (identity, error) {
	if spec.IDs != nil {
		who := identity{uid: spec.IDs.UID, gid: spec.IDs.GID, groups: spec.IDs.Groups, home: "/"}
		if known, err := lookUpUser(f.root, fmt.Sprint(spec.IDs.UID)); err == nil {
			who.home = known.home
		}
		return who, nil
	}
	name := spec.User
	if name == "" {
		name = f.spec.User
	}
	return lookUpUser(f.root, name)
}

// dirOf opens a working directory, and makes it only if that is asked for: who
// mistypes one is to be told.
func dirOf(root, name string, create bool) (*os.File, string, error) {
	if !create && name != "" {
		dir, err := openAt(root, name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil, "", fmt.Errorf("the working directory %s: %w", name, errors.Unwrap(err))
		}
		dir.Close()
	}
	return workDir(root, name)
}

// unrunnable gives the error of a program that could not be run its class, as
// shells have it: 127 where there is none, 126 where there is.
func unrunnable(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return refusedError{guest.RefusedNotFound, err}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM),
		errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ETXTBSY):
		return refusedError{guest.RefusedNotExecutable, err}
	}
	return err
}

// serve does what the host asks for over the connection that is attached, until
// that ends.
func (p *process) serve(c *execConn) {
	buf := make([]byte, 512)
	for {
		k, b, err := guest.ReadFrame(c.Conn, guest.FromExecHost, buf)
		if err == nil {
			if len(b) > len(buf) {
				buf = b
			}
			err = p.take(c, k, b)
		}
		if err != nil {
			p.lost(c)
			return
		}
	}
}

// errDetached ends the reading of a connection that has been told so.
var errDetached = errors.New("detached")

func (p *process) take(c *execConn, k guest.Kind, b []byte) error {
	switch k {
	case guest.KindStdin:
		return p.input(c, b)
	case guest.KindEOF:
		p.mu.Lock()
		p.eof = true
		p.changed.Broadcast()
		p.mu.Unlock()
	case guest.KindResize:
		rows, cols, err := guest.DecodeResize(b)
		if err != nil {
			return err
		}
		return p.resize(rows, cols)
	case guest.KindSignal:
		n, to, err := guest.DecodeSignal(b)
		if err != nil {
			return err
		}
		p.signal(unix.Signal(n), to)
	case guest.KindRoom:
		k, n, err := guest.DecodeRoom(b)
		if err != nil {
			return err
		}
		p.grow(c, k, n)
	case guest.KindNoted:
		p.mu.Lock()
		p.noted = p.noted || p.told && p.conn == c
		p.changed.Broadcast()
		p.mu.Unlock()
	case guest.KindDetach:
		p.detach(c, "")
		return errDetached
	default:
		return fmt.Errorf("a frame of kind %d for a process", k)
	}
	return nil
}

// attach makes the connection the process's, in place of an earlier one.
func (p *process) attach(c *execConn) {
	p.detach(nil, "another connection has attached to the process")
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = c.frame(guest.KindStarted, guest.EncodeCount(p.pid)) // who reads the connection finds its end
	p.conn, p.room = c, newOutputRoom(p.exit != nil)
	p.changed.Broadcast()
}

// takesLimit bounds how long a host that reads nothing is waited for when its
// connection is to end.
const takesLimit = time.Second

// detach takes the process's connection away from it, c or, when that is nil, any.
func (p *process) detach(c *execConn, why string) {
	p.mu.Lock()
	if c == nil {
		c = p.conn
	}
	if c != nil && p.conn == c {
		p.conn = nil
	}
	p.mu.Unlock()
	if c == nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(takesLimit)) // of what is being written, too
	_ = c.last(guest.KindDetached, []byte(why))
}

// lost notes that a connection has ended. Without it the process is ended, unless
// it is to be kept or another has attached to it.
func (p *process) lost(c *execConn) {
	p.mu.Lock()
	mine := p.conn == c
	if mine {
		p.conn = nil
	}
	ended := p.exit != nil
	noted := p.noted
	p.mu.Unlock()
	switch {
	case !mine || noted:
	case !p.spec.Keep:
		go p.hangUp()
	case ended:
		p.all.keep(p)
	}
}

// hangUpGrace is for how long a process may go on whose connection has ended.
const hangUpGrace = 2 * time.Second

// hangUp ends the process and what it has started, as a terminal that goes does,
// and then by force.
func (p *process) hangUp() {
	p.signal(unix.SIGHUP, guest.ToAll)
	grace := time.AfterFunc(hangUpGrace, func() {
		p.kill()
		p.abandon()
	})
	p.mu.Lock()
	for p.exit == nil && !p.left {
		p.changed.Wait()
	}
	p.mu.Unlock()
	if grace.Stop() { // it has ended, what it started may not have
		p.kill()
		p.abandon()
	}
}

// abandon forgets the process when it has ended: nobody will ask.
func (p *process) abandon() {
	p.mu.Lock()
	p.left = true
	p.changed.Broadcast()
	p.mu.Unlock()
}

// signal sends it to whom it is for.
func (p *process) signal(n unix.Signal, to guest.SignalTo) {
	f := p.all.fn
	f.mu.Lock() // so that no pid is reaped, and another's, meanwhile
	defer f.mu.Unlock()
	_, runs := f.children[p.pid]
	switch {
	case to != guest.ToAll && !runs:
	case to == guest.ToBeginning && p.spec.Init && ends(n) && !handles(p.pid, n):
		p.endedBy = n
		_ = unix.Kill(p.pid, unix.SIGKILL)
	case to != guest.ToAll:
		_ = unix.Kill(p.pid, n) // it may be ending
	case p.group == nil:
		_ = unix.Kill(-p.pid, n)
	default:
		pids, _ := inGroup(p.group) // it is there until the process is forgotten
		for _, pid := range pids {
			_ = unix.Kill(pid, n)
		}
	}
}

// kill ends all that is in the process's group.
func (p *process) kill() {
	if p.group == nil {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
		return
	}
	_ = os.WriteFile(filepath.Join(p.group.Name(), "cgroup.kill"), []byte("1"), 0) // else it is empty, and removed
}

// reaped is called once, when the process has ended.
func (p *process) reaped(ws unix.WaitStatus) {
	e := guest.ProcessExit{Code: ws.ExitStatus(), UnixNano: time.Now().UnixNano()}
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.OOM = ws.Signal() == unix.SIGKILL && p.all.fn.group.killed() > p.oom
		if ws.Signal() == unix.SIGKILL && !e.OOM && p.endedBy != 0 {
			e.Signal = int(p.endedBy)
		}
		e.Code = 128 + e.Signal
	}
	p.mu.Lock()
	p.exit = &e
	p.room.add(guest.MaxRest)
	unwatched := p.conn == nil && p.spec.Keep
	p.changed.Broadcast()
	p.mu.Unlock()
	if unwatched {
		p.all.keep(p)
	}
	for _, o := range p.out { // what it has left running may hold them open
		_ = o.file.SetReadDeadline(time.Now())
	}
	if p.stdin != nil && !p.spec.TTY {
		p.stdin.Close()
	}
}

// run waits for the end of the process and of its output, and tells whoever asks.
func (p *process) run() {
	p.pumps.Wait()
	p.mu.Lock()
	for p.exit == nil {
		p.changed.Wait()
	}
	p.mu.Unlock()
	for c := p.watcher(); c != nil && !p.tell(c); c = p.watcher() {
		p.lost(c)
	}
	_ = p.closeOwn() // nothing is in them any more
	p.all.forget(p)
}

// tell tells the host of the process's end, and waits until it has noted that; false:
// the connection has ended before, or nobody will ask any more. Meanwhile the id is free.
func (p *process) tell(c *execConn) bool {
	p.mu.Lock()
	p.told = true
	p.mu.Unlock()
	if c.last(guest.KindEnded, p.exit.Encode()) != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.noted && p.conn == c && !p.left {
		p.changed.Wait()
	}
	return p.noted
}

// isTold says that the host may know of its end.
func (p *process) isTold() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told
}

// watcher waits until somebody is attached; nil: nobody will.
func (p *process) watcher() *execConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == nil && !p.left {
		p.changed.Wait()
	}
	if p.left {
		return nil
	}
	return p.conn
}
