package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/testenv"
)

func TestMain(m *testing.M) {
	if IsGate() {
		Gate()
	}
	if IsProcMount() {
		ProcMount()
	}
	os.Exit(m.Run())
}

// limit is for what takes a moment.
const limit = 30 * time.Second

// station is a processes whose function has this machine for a guest.
type station struct {
	t *testing.T
	*processes
	l *net.TCPListener
}

func newStation(t *testing.T) *station {
	t.Helper()
	testenv.Need(t, "root")
	t.Chdir(".") // a fork moves the agent to /; this brings the test back
	before := goleak.IgnoreCurrent()
	f := newFunction(newOutput(), "/")
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &f.files); err != nil { // to raise it takes what some hosts of tests do not give
		t.Fatal(err)
	}
	f.files.Cur = 1024
	f.started, f.spec = true, guest.Start{Env: []string{"A=1", "B=2"}, Port: 80}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &station{t, newProcesses(f), l}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			served.Go(func() { s.serve(c) })
		}
	})
	sigs, over := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(sigs, unix.SIGCHLD)
	served.Go(func() {
		for {
			select {
			case <-sigs:
				f.reapAll()
			case <-over:
				return
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		var all []*process
		for _, p := range s.byID {
			all = append(all, p)
		}
		s.mu.Unlock()
		for _, p := range all {
			p.kill()
			p.abandon()
		}
		s.until("all processes are forgotten", func() bool { return s.count() == 0 })
		signal.Stop(sigs)
		close(over)
		served.Wait()
		goleak.VerifyNone(t, before)
	})
	return s
}

func (s *station) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byID) + len(s.conns)
}

func (s *station) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (s *station) dial() net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp4", s.l.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *station) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *station) exec(p guest.Process, stdout, stderr io.Writer) *guest.Running {
	s.t.Helper()
	r, err := guest.Exec(s.ctx(), s.dial(), p, stdout, stderr)
	if err != nil {
		s.t.Fatalf("%q: %v", p.Argv, err)
	}
	s.t.Cleanup(func() { r.Close() })
	return r
}

// run runs a process to its end.
func (s *station) run(p guest.Process) (stdout, stderr string, exit guest.ProcessExit) {
	s.t.Helper()
	var out, errs bytes.Buffer
	r := s.exec(p, &out, &errs)
	exit, err := r.Wait(s.ctx())
	if err != nil {
		s.t.Fatalf("%q: %v", p.Argv, err)
	}
	return out.String(), errs.String(), exit
}

func shell(script string) guest.Process {
	return guest.Process{ID: "x", Argv: []string{"sh", "-c", script}}
}

func TestExec(t *testing.T) {
	s := newStation(t)
	dir := t.TempDir()
	hard := s.fn.files.Max
	umask := uint32(0o077)
	for name, c := range map[string]struct {
		p      guest.Process
		change func(*guest.Process)
		out    string
		errs   string
		code   int
	}{
		"status":        {p: shell("exit 7"), code: 7},
		"both streams":  {p: shell("echo out; echo err >&2"), out: "out\n", errs: "err\n"},
		"signal":        {p: shell("kill -TERM $$"), code: 143},
		"environment":   {p: shell("echo $A $B $C $PORT"), change: func(p *guest.Process) { p.Env = []string{"B=3", "C=4"} }, out: "1 3 4 80\n"},
		"directory":     {p: shell("pwd"), change: func(p *guest.Process) { p.Dir = dir }, out: dir + "\n"},
		"its directory": {p: shell("pwd"), out: "/\n"},
		"made":          {p: shell("pwd"), change: func(p *guest.Process) { p.Dir, p.MakeDir = dir+"/new", true }, out: dir + "/new\n"},
		"user":          {p: shell("id -u; id -g; id -G"), change: func(p *guest.Process) { p.User = "1234:56" }, out: "1234\n56\n56\n"},
		"numbers":       {p: shell("id -u; id -g; id -G"), change: func(p *guest.Process) { p.IDs = &guest.IDs{UID: 7, GID: 8, Groups: []uint32{9}} }, out: "7\n8\n8 9\n"},
		"no stdin":      {p: shell("cat; readlink /proc/self/fd/0"), out: "/dev/null\n"},
		"session":       {p: shell("ps -o sid= -p $$ | tr -d ' '; echo $$"), change: func(*guest.Process) {}, out: "same"},
		"umask":         {p: shell("umask; pwd"), change: func(p *guest.Process) { p.Umask, p.Dir = &umask, dir }, out: "0077\n" + dir + "\n"},
		"left behind":   {p: shell("sleep 1000 & echo $!"), out: "pid"},
		"open files":    {p: shell("ulimit -n; ulimit -Hn"), out: fmt.Sprintf("1024\n%d\n", hard)},
		"its files": {p: shell("ulimit -n; ulimit -Hn"), change: func(p *guest.Process) {
			p.Rlimits = []guest.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: hard}}
		}, out: fmt.Sprintf("100\n%d\n", hard)},
		"limits": {p: shell("ulimit -n; ulimit -c; ulimit -Hl; ulimit -St; pwd; for n in 3 4 5; do [ -e /proc/$$/fd/$n ] && echo $n is open; done; true"), change: func(p *guest.Process) {
			p.Dir = dir
			p.Rlimits = []guest.Rlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1 << 21}, {Type: "RLIMIT_CPU", Soft: 100, Hard: 100}}
		}, out: "1024\n0\n2048\n100\n" + dir + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(&c.p)
			}
			out, errs, exit := s.run(c.p)
			switch c.out {
			case "same":
				if f := strings.Fields(out); len(f) != 2 || f[0] != f[1] {
					t.Errorf("session and pid: %q", out)
				}
				return
			case "pid":
				pid, err := strconv.Atoi(strings.TrimSpace(out))
				if err != nil || unix.Kill(pid, unix.SIGKILL) != nil {
					t.Errorf("what it left running is gone: %q", out)
				}
				return
			}
			if out != c.out || errs != c.errs || exit.Code != c.code || exit.OOM {
				t.Errorf("%q, %q, %+v; want %q, %q, %d", out, errs, exit, c.out, c.errs, c.code)
			}
			if since := time.Since(time.Unix(0, exit.UnixNano)); since < 0 || since > limit {
				t.Errorf("it ended %v ago", since)
			}
		})
	}
	s.t = t
	if cwd, _ := os.Getwd(); cwd != "/" { // the function's children are forked from there
		t.Logf("the agent is in %s", cwd)
	}
}

func TestPrivileges(t *testing.T) {
	s := newStation(t)
	status := func(p guest.Process) map[string]string {
		t.Helper()
		p.ID, p.Argv = "x", []string{"cat", "/proc/self/status"}
		out, _, _ := s.run(p)
		m := map[string]string{}
		for line := range strings.Lines(out) {
			k, v, _ := strings.Cut(line, ":")
			m[k] = strings.TrimSpace(v)
		}
		return m
	}
	few := []string{"CAP_CHOWN", "CAP_KILL"}
	m := status(guest.Process{NoNewPrivileges: true, Capabilities: &guest.Capabilities{Bounding: few, Effective: few, Permitted: few}})
	if m["NoNewPrivs"] != "1" || m["CapBnd"] != "0000000000000021" || m["CapPrm"] != m["CapBnd"] || m["CapEff"] != m["CapBnd"] {
		t.Errorf("root with few: %v %v %v %v", m["NoNewPrivs"], m["CapBnd"], m["CapPrm"], m["CapEff"])
	}
	m = status(guest.Process{IDs: &guest.IDs{UID: 7, GID: 7}, Capabilities: &guest.Capabilities{Bounding: few, Permitted: few, Inheritable: few, Ambient: few[:1]}})
	if m["CapBnd"] != "0000000000000021" || m["CapPrm"] != "0000000000000001" || m["CapInh"] != "0000000000000021" || m["CapAmb"] != m["CapPrm"] {
		t.Errorf("a user with an ambient one: %v %v %v %v", m["CapBnd"], m["CapPrm"], m["CapInh"], m["CapAmb"])
	}
	m = status(guest.Process{IDs: &guest.IDs{UID: 7, GID: 7}, Capabilities: &guest.Capabilities{}})
	if m["CapBnd"] != "0000000000000000" || m["CapPrm"] != m["CapBnd"] {
		t.Errorf("a user with none: %v", m)
	}
	own, err := os.ReadFile("/proc/self/status") // of no thread that was changed
	if err != nil || !strings.Contains(string(own), "NoNewPrivs:\t0") || strings.Contains(string(own), "CapBnd:\t0000000000000000") {
		t.Errorf("the agent itself: %v, %s", err, own)
	}
	if m = status(guest.Process{}); m["NoNewPrivs"] != "0" || m["CapBnd"] == "0000000000000000" {
		t.Errorf("as the function: %v", m)
	}
}

func TestRefusals(t *testing.T) {
	s := newStation(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"plain": "x", "script": "#!/none\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), map[string]os.FileMode{"plain": 0o644, "script": 0o755}[name]); err != nil {
			t.Fatal(err)
		}
	}
	s.exec(guest.Process{ID: "taken", Argv: []string{"sleep", "1000"}}, nil, nil)
	for _, c := range []struct {
		p    guest.Process
		why  guest.Refusal
		text string
	}{
		{guest.Process{Argv: []string{"none-such"}}, guest.RefusedNotFound, "no program"},
		{guest.Process{Argv: []string{"/none/such"}}, guest.RefusedNotFound, "no such program"},
		{guest.Process{Argv: []string{dir + "/script"}}, guest.RefusedNotFound, "not the interpreter"},
		{guest.Process{Argv: []string{dir + "/plain"}}, guest.RefusedNotExecutable, "no file that may be executed"},
		{guest.Process{Argv: []string{"/etc"}}, guest.RefusedNotExecutable, "running /etc"},
		{guest.Process{Argv: []string{"/none/such"}, Rlimits: []guest.Rlimit{{Type: "RLIMIT_CPU", Soft: 9, Hard: 9}}}, guest.RefusedNotFound, "no such program"},
		{guest.Process{Argv: []string{"ls"}, Dir: "/none"}, guest.RefusedDirectory, "the working directory /none"},
		{guest.Process{Argv: []string{"ls"}, User: "none-such"}, guest.RefusedUser, "none-such"},
		{guest.Process{Argv: []string{"ls"}, ID: "taken"}, guest.RefusedBusy, "runs already"},
		{guest.Process{Argv: []string{"ls"}, Rlimits: []guest.Rlimit{{Type: "RLIMIT_X"}}}, guest.RefusedOther, "RLIMIT_X"},
		{guest.Process{Argv: []string{"ls"}, Capabilities: &guest.Capabilities{Bounding: []string{"CAP_X"}}}, guest.RefusedOther, "CAP_X"},
	} {
		if c.p.ID == "" {
			c.p.ID = "x"
		}
		_, err := guest.Exec(s.ctx(), s.dial(), c.p, nil, nil)
		var refused *guest.RefusedError
		if !errors.As(err, &refused) || refused.Why != c.why || !strings.Contains(refused.Text, c.text) {
			t.Errorf("%+v: %v, want %d %q", c.p, err, c.why, c.text)
		}
	}
	var refused *guest.RefusedError
	if _, err := guest.Attach(s.ctx(), s.dial(), "none", nil, nil); !errors.As(err, &refused) || refused.Why != guest.RefusedNoProcess {
		t.Errorf("attaching to nothing: %v", err)
	}
	s.fn.mu.Lock()
	s.fn.started = false
	s.fn.mu.Unlock()
	if _, err := guest.Exec(s.ctx(), s.dial(), shell("true"), nil, nil); err == nil || !strings.Contains(err.Error(), "not started") {
		t.Errorf("in a guest that was not started: %v", err)
	}
}

func TestEcho(t *testing.T) {
	s := newStation(t)
	in, out := sha256.New(), sha256.New()
	r := s.exec(guest.Process{ID: "x", Argv: []string{"cat"}, Stdin: true}, out, nil)
	if _, err := io.Copy(io.MultiWriter(r, in), io.LimitReader(rand.Reader, 8<<20+1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.CloseStdin(), r.CloseStdin()); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != 0 || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Errorf("%+v, %v", exit, err)
	}
	if _, err := r.Write([]byte("x")); err == nil {
		t.Error("it takes input after its end")
	}
}

// gateWriter blocks at its first write until it is opened.
type gateWriter struct {
	entered, open chan struct{}
	once          sync.Once
	n             int
}

func (w *gateWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.entered) })
	<-w.open
	w.n += len(p)
	return len(p), nil
}

// TestNothingIsDropped lets nobody take what a process writes, or read what it is
// sent: it waits, signals reach it all the same, and nothing is lost.
func TestNothingIsDropped(t *testing.T) {
	s := newStation(t)
	mark := filepath.Join(t.TempDir(), "mark")
	w := &gateWriter{entered: make(chan struct{}), open: make(chan struct{})}
	r := s.exec(guest.Process{ID: "x", Stdin: true, Argv: []string{"sh", "-c",
		"trap 'touch " + mark + "; exit 9' USR1; while kill -0 $$; do sleep 0.01; done 2>/dev/null & head -c 67108864 /dev/zero; touch " + mark + ".early; wait"}}, w, nil)
	<-w.entered
	if err := r.Signal(int(unix.SIGUSR1), guest.ToProcess); err != nil { // the shell sees it when head has ended
		t.Error(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := r.Write(make([]byte, 4*guest.StdinWindow)) // nobody reads
		written <- err
	}()
	if _, err := os.Stat(mark + ".early"); err == nil {
		t.Error("64 MiB were written that nobody has taken")
	}
	close(w.open)
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != 9 || w.n != 64<<20 {
		t.Errorf("%+v, %v; %d bytes came", exit, err, w.n)
	}
	<-written // it does not hang; what nobody can read any more may be taken and dropped
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the signal did not come: %v", err)
	}
}

// TestEndsThatNobodyReads ends processes while nobody takes what they write: their end
// is told at once, and what they had written comes when somebody does.
func TestEndsThatNobodyReads(t *testing.T) {
	s := newStation(t)
	const n = guest.OutputWindow + 30_000 // more than there is room for, and less than fills the pipe as well
	for _, c := range []struct {
		script string
		kill   bool
		code   int
	}{
		{fmt.Sprintf("head -c %d /dev/zero; exit 5", n), false, 5},
		{"exec cat /dev/zero", true, 137},
	} {
		w := &gateWriter{entered: make(chan struct{}), open: make(chan struct{})}
		r := s.exec(shell(c.script), w, nil)
		<-w.entered
		if c.kill {
			if err := r.Signal(int(unix.SIGKILL), guest.ToProcess); err != nil {
				t.Error(err)
			}
		}
		if exit, err := r.End(s.ctx()); err != nil || exit.Code != c.code {
			t.Errorf("%s: %+v, %v", c.script, exit, err)
		}
		close(w.open)
		if _, err := r.Wait(s.ctx()); err != nil || !c.kill && w.n != n {
			t.Errorf("%s: of %d bytes %d came, %v", c.script, n, w.n, err)
		}
	}
}

// TestEndIsToldUntilNoted loses the connection over which the end of a process was
// told: who attaches next is told again, until one has noted it. Its id is free before.
func TestEndIsToldUntilNoted(t *testing.T) {
	s := newStation(t)
	p := shell("echo said; exit 6")
	p.ID, p.Keep = "kept", true
	told := func(k guest.Kind, v []byte) *guest.ProcessExit {
		t.Helper()
		c := s.dial()
		defer c.Close() // without a word
		if err := guest.WriteFrame(c, k, v); err != nil {
			t.Fatal(err)
		}
		for {
			k, b, err := guest.ReadFrame(c, guest.FromExecAgent, nil)
			if err != nil {
				t.Fatal(err)
			}
			switch k {
			case guest.KindEnded:
				e, err := guest.DecodeProcessExit(b)
				if err != nil {
					t.Error(err)
				}
				return &e
			case guest.KindRefused:
				t.Fatalf("refused: %s", b)
			}
		}
	}
	spec, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second takes the id of the first, whose end nobody has noted
		if e := told(guest.KindExec, spec); e.Code != 6 {
			t.Errorf("%+v", e)
		}
	}
	for range 2 {
		if e := told(guest.KindAttach, []byte("kept")); e.Code != 6 {
			t.Errorf("told again: %+v", e)
		}
	}
	r, err := guest.Attach(s.ctx(), s.dial(), "kept", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := r.Wait(s.ctx()); err != nil || e.Code != 6 {
		t.Errorf("%+v, %v", e, err)
	}
	s.until("it is forgotten", func() bool { return s.count() == 0 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) > 0 {
		t.Error("what has been noted is kept")
	}
}

func TestSignalsReachWhoDoesNotRead(t *testing.T) {
	s := newStation(t)
	r := s.exec(guest.Process{ID: "x", Argv: []string{"sleep", "1000"}, Stdin: true}, nil, nil)
	written := make(chan error, 1)
	go func() {
		_, err := r.Write(make([]byte, 1<<20))
		written <- err
	}()
	if err := r.Signal(int(unix.SIGTERM), guest.ToAll); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Signal != int(unix.SIGTERM) || exit.Code != 143 {
		t.Errorf("%+v, %v", exit, err)
	}
	<-written
}

func TestTerminal(t *testing.T) {
	s := newStation(t)
	var mu sync.Mutex
	var out bytes.Buffer
	text := func() string { mu.Lock(); defer mu.Unlock(); return out.String() }
	r := s.exec(guest.Process{ID: "x", TTY: true, Stdin: true, Rows: 33, Cols: 111, Argv: []string{"sh", "-c", "tty; stty size; read line; stty size; exit 4"}},
		writerFunc(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return out.Write(p) }), nil)
	s.until("it tells its size", func() bool { return strings.Contains(text(), "33 111") })
	if !strings.Contains(text(), "/dev/pts/") {
		t.Errorf("it says %q", text())
	}
	if err := r.Resize(44, 55); err != nil {
		t.Error(err)
	}
	if _, err := r.Write([]byte("go\n")); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != 4 || !strings.Contains(text(), "44 55") {
		t.Errorf("%+v, %v; %q", exit, err, text())
	}
	// The terminal's own signal, by the key for it.
	r = s.exec(guest.Process{ID: "y", TTY: true, Stdin: true, Argv: []string{"sleep", "1000"}}, nil, nil)
	if _, err := r.Write([]byte{3}); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Signal != int(unix.SIGINT) {
		t.Errorf("^C: %+v, %v", exit, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// TestConnectionEnds ends the connection of processes, which end with it, those
// that ignore a hang-up by force, and what they have started as well.
func TestConnectionEnds(t *testing.T) {
	s := newStation(t)
	for _, script := range []string{"echo ready; sleep 1000 & wait", "trap '' HUP; echo ready; sleep 1000 & wait; sleep 1000"} {
		ready := make(chan struct{}, 8)
		r := s.exec(shell(script), writerFunc(func(p []byte) (int, error) { ready <- struct{}{}; return len(p), nil }), nil)
		<-ready
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		s.until("it has ended", func() bool { return !alive(-r.PID()) && s.count() == 0 })
	}
}

func TestKeptProcess(t *testing.T) {
	s := newStation(t)
	p := guest.Process{ID: "kept", Keep: true, Stdin: true, Argv: []string{"sh", "-c", "while read line; do echo got $line; done; echo over; exit 5"}}
	var first, second bytes.Buffer
	r := s.exec(p, &first, nil)
	io.WriteString(r, "one\n")
	s.until("it answers", func() bool { return r.Detach(s.ctx()) == nil })
	var detached *guest.DetachedError
	if _, err := r.Wait(s.ctx()); !errors.As(err, &detached) {
		t.Errorf("after that: %v", err)
	}
	lost, err := guest.Attach(s.ctx(), s.dial(), "kept", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	lost.Close() // without a word
	if !alive(r.PID()) {
		t.Error("it ended with the connection")
	}
	old, err := guest.Attach(s.ctx(), s.dial(), "kept", io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err = guest.Attach(s.ctx(), s.dial(), "kept", &second, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Wait(s.ctx()); !errors.As(err, &detached) || !strings.Contains(err.Error(), "another") {
		t.Errorf("who was attached before: %v", err)
	}
	io.WriteString(r, "two\n")
	if err := r.CloseStdin(); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != 5 || !strings.HasSuffix(first.String()+second.String(), "got two\nover\n") {
		t.Errorf("%+v, %v; %q, %q", exit, err, first.String(), second.String())
	}
}

// TestEndsMeanwhile ends processes that nobody is attached to: who comes later
// gets all that they wrote and how they ended, of the last so many.
func TestEndsMeanwhile(t *testing.T) {
	s := newStation(t)
	const most = guest.MaxKept + 3
	dir := t.TempDir()
	for i := range most {
		// It ends when nobody is attached any more, who would be told of it.
		file := filepath.Join(dir, fmt.Sprint(i))
		p := shell(fmt.Sprintf("until [ -e %s ]; do sleep 0.01; done; echo output %d; exit %d", file, i, i))
		p.ID, p.Keep = fmt.Sprint("p", i), true
		r := s.exec(p, nil, nil)
		if err := r.Detach(s.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		pid := r.PID()
		s.until("it has ended", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return !alive(pid) && (len(s.kept) == min(i+1, guest.MaxKept))
		})
	}
	s.until("the oldest are forgotten", func() bool { return s.count() == guest.MaxKept })
	if _, err := guest.Attach(s.ctx(), s.dial(), "p0", nil, nil); err == nil {
		t.Error("the oldest is still there")
	}
	var out bytes.Buffer
	r, err := guest.Attach(s.ctx(), s.dial(), fmt.Sprint("p", most-1), &out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != most-1 || out.String() != fmt.Sprintf("output %d\n", most-1) {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
}

func TestSnapshotEndsConnections(t *testing.T) {
	s := newStation(t)
	gone := s.exec(guest.Process{ID: "gone", Argv: []string{"sleep", "1000"}}, nil, nil)
	kept := s.exec(guest.Process{ID: "kept", Argv: []string{"sleep", "1000"}, Keep: true}, nil, nil)
	blocked := s.exec(guest.Process{ID: "blocked", Argv: []string{"yes"}}, nil, nil)
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*guest.Running{gone, kept, blocked} {
		var detached *guest.DetachedError
		if _, err := r.Wait(s.ctx()); !errors.As(err, &detached) || !strings.Contains(err.Error(), "snapshot") {
			t.Errorf("its host is told %v", err)
		}
	}
	if alive(gone.PID()) || alive(blocked.PID()) || !alive(kept.PID()) {
		t.Error("the wrong ones live on")
	}
	if _, err := guest.Exec(s.ctx(), s.dial(), shell("true"), nil, nil); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("one more before the end of that: %v", err)
	}
	s.thawed()
	if _, _, exit := s.run(shell("exit 3")); exit.Code != 3 {
		t.Errorf("in the clone: %+v", exit)
	}
	r, err := guest.Attach(s.ctx(), s.dial(), "kept", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Signal(int(unix.SIGKILL), guest.ToAll); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(s.ctx()); err != nil || exit.Code != 137 || exit.OOM {
		t.Errorf("%+v, %v", exit, err)
	}
}

// What is watched may be looked at by its name, and not be opened before a snapshot.
func TestWatches(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sub/file", "alone", "other"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, open := range []string{"sub/file", "alone", "sub"} {
		s := newStation(t)
		watch := func(path string) error { return guest.Watch(s.ctx(), s.dial(), path) }
		for _, path := range []string{dir + "/sub", dir + "/alone", ""} {
			if err := watch(path); err != nil {
				t.Fatal(err)
			}
		}
		_, err := os.Stat(filepath.Join(dir, open))
		_, err2 := os.ReadFile(dir + "/other")
		if err := errors.Join(err, err2, watch("")); err != nil {
			t.Errorf("nothing was opened: %v", err)
		}
		f, err := os.Open(filepath.Join(dir, open))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		var refused *guest.RefusedError
		for range 2 {
			if err := watch(""); !errors.As(err, &refused) || refused.Why != guest.RefusedOpened {
				t.Errorf("%s was opened: %v", open, err)
			}
		}
		if err := s.watches.end(); err == nil {
			t.Error("a snapshot could be made")
		}
		unix.Close(s.watches.fd)
	}
	s := newStation(t)
	if err := guest.Watch(s.ctx(), s.dial(), dir); err != nil {
		t.Fatal(err)
	}
	if err := s.watches.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadFile(dir + "/alone"); err != nil {
		t.Fatal(err)
	}
	if err := guest.Watch(s.ctx(), s.dial(), ""); err != nil {
		t.Errorf("after the snapshot: %v", err)
	}
	if err := guest.Watch(s.ctx(), s.dial(), dir+"/none"); err == nil {
		t.Error("what is not there is watched")
	}
}

func TestCopies(t *testing.T) {
	s := newStation(t)
	dir := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	big := make([]byte, 3<<20)
	rand.Read(big)
	for name, data := range map[string][]byte{"small": []byte("abc"), "sub/big": big} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o4750, Uid: 7, Gid: 8, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	w.Close()
	to := dir + "/made/here"
	if err := guest.CopyIn(s.ctx(), s.dial(), to, bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to + "/sub/big"); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to+"/small", &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != 0o4750 {
		t.Errorf("%+v, %v", st, err)
	}
	for _, c := range []struct{ from, first string }{{to, "here/"}, {to + "/", "here/"}, {to + "/small", "small"}} {
		var out bytes.Buffer
		if err := guest.CopyOut(s.ctx(), s.dial(), c.from, &out); err != nil {
			t.Fatal(err)
		}
		if h, err := tar.NewReader(&out).Next(); err != nil || h.Name != c.first || h.Uid != map[bool]int{true: 7}[c.first == "small"] {
			t.Errorf("%s: %+v, %v", c.from, h, err)
		}
	}
	var refused *guest.RefusedError
	if err := guest.CopyOut(s.ctx(), s.dial(), dir+"/none", io.Discard); !errors.As(err, &refused) {
		t.Errorf("what is not there: %v", err)
	}
	if err := guest.CopyIn(s.ctx(), s.dial(), dir, io.MultiReader(strings.NewReader(strings.Repeat("no tar", 1000)), rand.Reader)); !errors.As(err, &refused) {
		t.Errorf("what is no tar, and has no end: %v", err)
	}
	if err := guest.CopyIn(s.ctx(), s.dial(), dir, io.MultiReader(bytes.NewReader(b.Bytes()[:1<<20]), errReader{})); !errors.Is(err, errBroken) {
		t.Errorf("a source that breaks: %v", err)
	}
	s.until("the connections are over", func() bool { return s.count() == 0 })
	if left, _ := filepath.Glob(dir + "/*/.skep*"); len(left) > 0 {
		t.Errorf("half a file is left: %v", left)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// TestHostileHost sends the agent what it does not expect: the connection ends,
// and with it its process.
func TestHostileHost(t *testing.T) {
	s := newStation(t)
	for name, frames := range map[string][]byte{
		"unknown":        {0, 0, 0, 0, 99},
		"agent's":        {0, 0, 0, 0, byte(guest.KindCopied)},
		"huge":           {0xff, 0xff, 0xff, 0x7f, byte(guest.KindExec)},
		"stdin first":    {1, 0, 0, 0, byte(guest.KindStdin), 'x'},
		"short":          {9, 0, 0, 0, byte(guest.KindAttach), 'x'},
		"no JSON":        {1, 0, 0, 0, byte(guest.KindExec), 'x'},
		"no signal":      {2, 0, 0, 0, byte(guest.KindSignal), 0, 0},
		"second process": {1, 0, 0, 0, byte(guest.KindAttach), 'x'},
		"data":           {1, 0, 0, 0, byte(guest.KindData), 'x'},
		"much stdin":     bytes.Repeat(append([]byte{0, 0x10, 0, 0, byte(guest.KindStdin)}, make([]byte, 0x1000)...), 64),
	} {
		c := s.dial()
		c.Write(frames)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
		c = s.dial()
		p := guest.Process{ID: "hostile", Argv: []string{"sleep", "1000"}, Stdin: true}
		if err := guest.WriteJSON(c, guest.KindExec, p); err != nil {
			t.Fatal(err)
		}
		c.Write(frames)
		if name == "short" || name == "stdin first" { // which is not wrong here
			c.(*net.TCPConn).CloseWrite()
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		s.until("its process has ended", func() bool { return s.count() == 0 })
	}
}
