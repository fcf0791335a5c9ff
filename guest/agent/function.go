package agent

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// function is the server that the image's entrypoint is.
type function struct {
	out *output

	mu    sync.Mutex // guards all below
	spec  guest.Start
	names *names
	pid   int
	ready bool
	exit  string        // how it ended; "" while it runs
	ended chan struct{} // closed with exit
}

func newFunction(out *output) *function {
	return &function{out: out, ended: make(chan struct{})}
}

func (f *function) state() (started, ready bool, exit string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pid != 0, f.ready, f.exit
}

// start makes the root and runs the entrypoint in it.
func (f *function) start(s guest.Start) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pid != 0 {
		return errors.New("the function was started before")
	}
	if len(s.Argv) == 0 {
		return errors.New("nothing to run: neither the image nor the function has an entrypoint")
	}
	if err := renew(s.Instance, s.UnixNano, s.Entropy); err != nil {
		return err
	}
	if err := makeRoot(s); err != nil {
		return err
	}
	var err error
	if f.names, err = writeEtc(s); err != nil {
		return err
	}
	group, err := makeGroup()
	if err != nil {
		return err
	}
	defer group.Close()
	who, err := lookUpUser(root, s.User)
	if err != nil {
		return err
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	env := environment(s, who)
	path, err := lookPath(root, s.Dir, s.Argv[0], env)
	if err != nil {
		return err
	}
	f.spec = s
	return f.run(path, env, who, group)
}

// run forks; f.mu is held.
func (f *function) run(path string, env []string, who identity, group *os.File) error {
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
	attr := &syscall.ProcAttr{
		Dir: f.spec.Dir, Env: env,
		Files: []uintptr{null.Fd(), outW.Fd(), errW.Fd()},
		Sys: &syscall.SysProcAttr{
			Chroot: root, Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
			Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups},
		},
	}
	pid, err := syscall.ForkExec(path, f.spec.Argv, attr)
	if err != nil {
		return errors.Join(fmt.Errorf("running %s in %s: %w", path, f.spec.Dir, err), stdout.Close(), stderr.Close())
	}
	// The kernel should end the function before it ends init, which it inherited this from.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0) // it may have ended already
	f.pid = pid
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
	for !answers(f.spec.Port, f.spec.ReadyPath) {
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

// reap waits for every child, the function's orphans included: PID 1 gets them.
func (f *function) reap() {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	for range sigs {
		for {
			var ws unix.WaitStatus
			// Under the lock, so that start has noted the pid that ends here.
			f.mu.Lock()
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if err == nil && pid > 0 && pid == f.pid {
				f.exit = describe(ws)
				close(f.ended)
			}
			f.mu.Unlock()
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if pid == f.pid {
				f.out.stateChanged()
			}
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
	if err := killGroup(); err != nil {
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
	case f.pid == 0:
		return errors.New("the function was not started")
	case f.exit != "":
		return nil
	}
	return unix.Kill(f.pid, stopSignal(f.spec.StopSignal))
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
	if c.Hook == "" {
		return nil
	}
	body, err := json.Marshal(hookBody{Instance: c.Instance, Entropy: hex.EncodeToString(c.Entropy)})
	if err != nil {
		return err
	}
	status, err := request(f.spec.Port, "POST", c.Hook, string(body), hookLimit)
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
	if f.names == nil {
		return errors.New("this machine was not started, so it is no clone")
	}
	if err := renew(c.Instance, c.UnixNano, c.Entropy); err != nil {
		return err
	}
	return f.names.change(c.Instance)
}

// rehearse does all that a clone will be asked for, and changes nothing. What
// that needs of memory and page tables is then in the snapshot, and no clone
// has to make it: with it, and a buffer made ahead, the message takes some 180
// pages instead of 350.
func (f *function) rehearse() error {
	f.mu.Lock()
	names := f.names
	f.mu.Unlock()
	if names == nil {
		return nil
	}
	var entropy [64]byte
	if _, err := unix.Getrandom(entropy[:], 0); err != nil {
		return fmt.Errorf("rehearsing a clone: %w", err)
	}
	for range 2 {
		message := guest.Clone{Instance: names.instance, UnixNano: time.Now().UnixNano(), Entropy: entropy[:]}.Encode()
		c, err := guest.DecodeClone(message)
		if err != nil {
			return fmt.Errorf("rehearsing a clone: %w", err)
		}
		if err := f.rename(c); err != nil {
			return fmt.Errorf("rehearsing a clone: %w", err)
		}
	}
	return nil
}
