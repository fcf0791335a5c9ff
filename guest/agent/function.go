package agent

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// function is the server that the image's entrypoint is.
type function struct {
	out   *output
	root  string
	files unix.Rlimit // how many files its processes may open

	mu         sync.Mutex // guards all below
	started    bool
	spec       guest.Start
	names      *names
	deliveries deliveries
	group      *cgroup
	pids       *pidNamespace                 // that further processes are in; nil: the agent's own
	children   map[int]func(unix.WaitStatus) // of further processes: told when they are reaped, without mu
	host       string                        // address at which the server accepts; "" until it does
	pid        int
	ready      bool
	exit       string        // how it ended; "" while it runs
	ended      chan struct{} // closed with exit
}

func newFunction(out *output, root string) *function {
	return &function{out: out, root: root, files: functionFiles, children: map[int]func(unix.WaitStatus){}, ended: make(chan struct{})}
}

func (f *function) state() (started, ready bool, exit string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.started, f.ready, f.exit
}

// start makes the root and runs the entrypoint in it, if there is one.
func (f *function) start(s guest.Start) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.started {
		return errors.New("the function was started before")
	}
	if err := renew(hostname(s.Instance, s.Names), s.UnixNano, s.Entropy); err != nil {
		return err
	}
	var err error
	if f.group == nil {
		if f.group, err = makeGroup(s.LimitMiB); err != nil {
			return err
		}
	}
	if err := makeRoot(s); err != nil {
		return err
	}
	if f.names, f.deliveries, err = fill(s); err != nil {
		return err
	}
	if err := furnish(s); err != nil {
		return err
	}
	if len(s.Argv) == 0 {
		f.spec, f.started, f.ready = s, true, true
		f.out.stateChanged()
		return nil
	}
	who, err := lookUpUser(f.root, s.User)
	if err != nil {
		return err
	}
	dir, path, err := workDir(f.root, s.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	s.Dir, f.spec = path, s
	return f.run(dir, who)
}

// fill puts into the root what is not the image's.
func fill(s guest.Start) (*names, deliveries, error) {
	n, err := newNames(s) // what is mounted at /run covers it
	if err != nil {
		return nil, deliveries{}, err
	}
	m, err := mountAll(root, s.Mounts)
	if err == nil {
		err = n.writeEtc(s)
	}
	if err == nil {
		err = m.addNames()
	}
	if err == nil {
		err = m.restrict()
	}
	if err != nil {
		return nil, deliveries{}, err
	}
	return n, m.deliveries, nil
}

// run forks; f.mu is held.
func (f *function) run(dir *os.File, who identity) error {
	env := environment(f.spec, who)
	path, err := lookPath(f.root, f.spec.Dir, f.spec.Argv[0], env)
	if err != nil {
		return err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer null.Close()
	stdout, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outW.Close()
	stderr, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdout.Close())
	}
	defer errW.Close()
	pid, err := launch{root: f.root, group: f.group.dir, path: path, argv: f.spec.Argv, env: env, who: who, dir: dir,
		streams: []*os.File{null, outW, errW}, files: f.files}.fork()
	if err != nil {
		return errors.Join(explain(f.root, f.spec.Dir, path, err), stdout.Close(), stderr.Close())
	}
	// The kernel should end the function before it ends init, which it inherited this from.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0) // it may have ended already
	f.pid, f.started = pid, true
	go f.pass(guest.KindStdout, stdout)
	go f.pass(guest.KindStderr, stderr)
	go f.awaitReady()
	return nil
}

// passBytes is how much output is read at once; a frame holds it.
const passBytes = 16 << 10

// pass copies what the function writes to the host's queue.
func (f *function) pass(kind guest.Kind, r *os.File) {
	defer r.Close()
	buf := make([]byte, passBytes)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			f.out.put(kind, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// awaitReady asks the function's server until it answers. The pauses grow from
// 1 ms to 50 ms: many servers are there at once, and some take minutes.
func (f *function) awaitReady() {
	pause := time.Millisecond
	for !f.tryReady() {
		select {
		case <-f.ended:
			return
		case <-time.After(pause):
		}
		pause = min(pause*5/4+time.Millisecond, 50*time.Millisecond)
	}
	f.mu.Lock()
	f.ready = true
	f.mu.Unlock()
	f.out.stateChanged()
}

// tryReady asks the server once, where the host will ask it. One that only
// listens on a loopback address is made reachable, and told so in its log.
func (f *function) tryReady() bool {
	host, ok := inGuest.find(f.spec.Port)
	if !ok || f.spec.ReadyPath != "" && !succeeds(host, f.spec.Port, f.spec.ReadyPath) {
		return false
	}
	if host != inGuest.outside {
		l, err := inGuest.relay(host, f.spec.Port)
		if err != nil {
			return false // it has begun to listen everywhere just now
		}
		go func() { <-f.ended; l.Close() }()
		f.out.put(guest.KindStderr, fmt.Appendf(nil, "[the server listens on %s only: its requests are relayed to there; let it listen on 0.0.0.0 to save them that]\n",
			net.JoinHostPort(host, strconv.Itoa(f.spec.Port))))
	}
	f.mu.Lock()
	f.host = host
	f.mu.Unlock()
	return true
}

// reap waits for every child, the function's orphans included: PID 1 gets them.
func (f *function) reap() {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	for range sigs {
		f.reapAll()
	}
}

// reapAll waits for the children that have ended.
func (f *function) reapAll() {
	for {
		var ws unix.WaitStatus
		// Under the lock, so that whoever forks has noted the pid that ends here.
		f.mu.Lock()
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == nil && pid > 0 && pid == f.pid {
			f.exit = describe(ws)
			close(f.ended)
		}
		told := f.children[pid]
		delete(f.children, pid)
		f.mu.Unlock()
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid == f.pid {
			f.out.stateChanged()
		}
		if told != nil {
			told(ws)
		}
	}
}

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return "killed by " + unix.SignalName(ws.Signal())
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// stop sends the stop signal, and SIGKILL to all of the function's processes
// after the grace. It returns when the server has ended.
func (f *function) stop(grace time.Duration) error {
	if err := f.signal(); err != nil {
		return err
	}
	select {
	case <-f.ended:
		return nil
	case <-time.After(grace):
	}
	if err := f.group.kill(); err != nil {
		return fmt.Errorf("killing the function's processes: %w", err)
	}
	<-f.ended
	return nil
}

// signal sends the stop signal to the server, if that still runs.
func (f *function) signal() error {
	f.mu.Lock() // so that the pid is not reaped, and another's, meanwhile
	defer f.mu.Unlock()
	switch {
	case !f.started:
		return errors.New("the function was not started")
	case f.exit != "":
		return nil
	case f.pid == 0: // there is no server to ask
		f.exit = "stopped"
		close(f.ended)
		f.out.stateChanged()
		return f.group.kill()
	}
	return errors.Join(unix.Kill(f.pid, stopSignal(f.spec.StopSignal)), f.group.thaw())
}

// stopSignal reads the name ("SIGINT", "int") or number of an image's stop signal.
func stopSignal(name string) unix.Signal {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return unix.Signal(n)
	}
	if s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// hookLimit bounds a call of the function's clone hook.
const hookLimit = 10 * time.Second

// hookBody is what the clone hook is sent.
type hookBody struct {
	Instance string `json:"instance"`
	Entropy  string `json:"entropy"` // hexadecimal, 64 bytes
}

// clone makes this machine another than the one that was snapshotted.
func (f *function) clone(c guest.Clone) error {
	if err := f.rename(c); err != nil {
		return err
	}
	if err := f.group.thaw(); err != nil {
		return err
	}
	if c.Hook == "" {
		return nil
	}
	body, err := json.Marshal(hookBody{Instance: c.Instance, Entropy: hex.EncodeToString(c.Entropy)})
	if err != nil {
		return err
	}
	f.mu.Lock()
	host := f.host
	f.mu.Unlock()
	if host == "" {
		return fmt.Errorf("calling the clone hook %s: no server runs here", c.Hook)
	}
	status, err := request(host, f.spec.Port, "POST", c.Hook, string(body), hookLimit)
	if err != nil {
		return fmt.Errorf("calling the clone hook %s: %w", c.Hook, err)
	}
	if status/100 != 2 {
		return fmt.Errorf("the clone hook %s answers %d", c.Hook, status)
	}
	return nil
}

func (f *function) rename(c guest.Clone) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := renew(hostname(c.Instance, c.Names), c.UnixNano, c.Entropy); err != nil {
		return err
	}
	if f.names == nil {
		return nil // it is started yet, which gives it its names
	}
	if err := f.names.change(c.Instance, c.Names); err != nil {
		return err
	}
	for _, file := range c.Files {
		if err := f.deliveries.put(file); err != nil {
			return fmt.Errorf("filling %s: %w", file.Path, err)
		}
	}
	return nil
}

// rehearse does all that a clone will be asked for, and changes nothing. What
// that needs of memory and page tables is then in the snapshot, and no clone
// has to make it: with it, and a buffer made ahead, the message takes some 180
// pages instead of 350. It leaves the function's processes frozen: a clone thaws
// them when it has made itself another, so that none of them can draw a random
// number, or read a name, that all clones share.
func (f *function) rehearse() error {
	instance, names, err := f.called()
	if err != nil {
		return err
	}
	var entropy [64]byte
	if _, err := unix.Getrandom(entropy[:], 0); err != nil {
		return fmt.Errorf("rehearsing a clone: %w", err)
	}
	for range 2 {
		message := guest.Clone{Instance: instance, Names: names, UnixNano: time.Now().UnixNano(), Entropy: entropy[:]}.Encode()
		c, err := guest.DecodeClone(message)
		if err != nil {
			return fmt.Errorf("rehearsing a clone: %w", err)
		}
		if err := f.rename(c); err != nil {
			return fmt.Errorf("rehearsing a clone: %w", err)
		}
		if f.group == nil {
			continue
		}
		if err := f.group.thaw(); err != nil {
			return fmt.Errorf("rehearsing a clone: %w", err)
		}
		if err := f.group.freeze(); err != nil {
			return err
		}
	}
	return nil
}

// called returns what the machine is called now.
func (f *function) called() (instance string, n guest.Names, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names != nil {
		if f.names.hostname != f.names.instance {
			n.Hostname = f.names.hostname
		}
		return f.names.instance, n, nil
	}
	instance, err = os.Hostname()
	return instance, n, err
}
