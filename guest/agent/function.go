package agent

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0)
	f.pid = pid
	go f.pass(guest.KindStdout, stdout)
	go f.pass(guest.KindStderr, stderr)
	go f.awaitReady()
	return nil
}

// pass copies what the function writes to the host's queue.
func (f *function) pass(kind guest.Kind, r *os.File) {
	defer r.Close()
	buf := make([]byte, 16<<10)
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
	f.mu.Lock()
	pid, name := f.pid, f.spec.StopSignal
	f.mu.Unlock()
	if pid == 0 {
		return errors.New("the function was not started")
	}
	sig := unix.SIGTERM
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); n != 0 {
		sig = n
	}
	if _, _, exit := f.state(); exit == "" {
		unix.Kill(pid, sig)
	}
	select {
	case <-f.ended:
	case <-time.After(grace):
		killGroup()
		<-f.ended
	}
	return nil
}

// clone makes this machine another than the one that was snapshotted.
func (f *function) clone(c guest.Clone) error {
	if err := renew(c.Instance, c.UnixNano, c.Entropy); err != nil {
		return err
	}
	if c.Hook == "" {
		return nil
	}
	body := fmt.Sprintf(`{"instance":%q,"entropy":"%x"}`, c.Instance, c.Entropy)
	status, err := request(f.spec.Port, "POST", c.Hook, body, 10*time.Second)
	if err != nil {
		return fmt.Errorf("calling the clone hook %s: %w", c.Hook, err)
	}
	if status/100 != 2 {
		return fmt.Errorf("the clone hook %s answers %d", c.Hook, status)
	}
	return nil
}

// prepare flushes what a snapshot should not hold half done.
func (a *Agent) prepare() error {
	select {
	case <-a.out.drained():
	case <-time.After(time.Second): // the host is slow; the rest stays in the ring
	}
	unix.Sync()
	return nil
}

// lookPath finds the program in the function's root as a shell would.
func lookPath(root, dir, name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // relative to the working directory, as execve has it
	}
	paths := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			paths = v
		}
	}
	for _, p := range filepath.SplitList(paths) {
		full := filepath.Join(p, name)
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if executable(root, full) {
			return full, nil
		}
	}
	return "", fmt.Errorf("no program %q in the image's PATH %s", name, paths)
}

// executable reports whether path, seen by a process whose root directory is
// root, is a file that can be run.
func executable(root, path string) bool {
	f, err := openInRoot(root, path)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// openInRoot opens a path for reading as a process would that has root as its
// root directory: symbolic links do not lead out of it.
func openInRoot(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
