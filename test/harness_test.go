package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// binariesDir is where binaries put them; empty when no test asked.
var binariesDir string

// binaries builds skep, its agent and the hello function once per test run.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skep-e2e-bin-")
	if err != nil {
		return "", err
	}
	binariesDir = dir
	for _, b := range []struct{ name, pkg string }{
		{"skep", "cmd/skep"}, {"skep-agent", "cmd/skep-agent"}, {"skep-hello", "functions/hello"},
	} {
		if err := testenv.Build(filepath.Join(dir, b.name), b.pkg); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binariesDir != "" {
		os.RemoveAll(binariesDir)
	}
	os.Exit(code)
}

// daemon is one `skep up` on a data directory of its own, which it may outlive.
type daemon struct {
	t       *testing.T
	dir     string // holds data/, run/ and the configuration
	bin     string
	gateway string // host:port
	client  *api.Client
	cmd     *exec.Cmd
	log     *testenv.Output
	ended   chan error
	watch   *time.Timer   // fires when the test has hung
	longer  time.Duration // than others its test may take
	hung    atomic.Bool   // and its daemon was ended for it

	acknowledged []string        // functions whose deploy was answered before a crash
	orphaned     map[string]bool // what there was when the daemon had been killed
}

// start prepares a data directory and starts a daemon on it. Its end, and that
// nothing is left of it, is checked when the test ends.
func start(t *testing.T, settings ...string) *daemon {
	t.Helper()
	testenv.Need(t, "root", "uffd", "tap", "kernel")
	if !testenv.Has("kvm") || !testenv.Has("firecracker") {
		testenv.Need(t, "qemu") // which the daemon uses then
	}
	d := prepare(t, settings...)
	d.up()
	return d
}

func prepare(t *testing.T, settings ...string) *daemon {
	t.Helper()
	return prepareIn(t, t.TempDir(), settings...)
}

func prepareIn(t *testing.T, dir string, settings ...string) *daemon {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	kernels := testenv.KernelStore(t)
	d := &daemon{t: t, dir: dir, bin: bin, gateway: testenv.FreeAddress(t), log: &testenv.Output{}}
	conf := []string{
		"data_dir = '" + d.data() + "'",
		"run_dir = '" + filepath.Join(dir, "run") + "'",
		"socket = '" + d.socket() + "'",
		"listen = '" + d.gateway + "'",
		"kernel_dir = '" + kernels + "'",
		"log_level = 'debug'",
	}
	conf = append(conf, settings...)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.client = api.NewClient(api.ClientOptions{Socket: d.socket()})
	t.Cleanup(func() {
		d.down()
		if d.hung.Load() { // another clears away what that one had running
			d.up()
			d.down()
		}
		d.client.Close()
		if t.Failed() {
			t.Logf("the daemon's log (end):\n%s", d.log.Tail(12000))
		}
		if left := slices.Sorted(maps.Keys(leftovers(d.data()))); len(left) > 0 {
			t.Errorf("left behind after the daemon's end:\n  %s", strings.Join(left, "\n  "))
		}
	})
	return d
}

func (d *daemon) data() string   { return filepath.Join(d.dir, "data") }
func (d *daemon) socket() string { return filepath.Join(d.dir, "skep.sock") }

// up starts the daemon and waits until its control API answers.
func (d *daemon) up() {
	d.t.Helper()
	d.cmd = exec.Command(filepath.Join(d.bin, "skep"), "--config", filepath.Join(d.dir, "config.toml"), "up")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.ended = make(chan error, 1)
	go func(c *exec.Cmd, ended chan error) { ended <- c.Wait() }(d.cmd, d.ended)
	d.watchOver()
	deadline := time.Now().Add(testenv.Limit(d.t, time.Minute))
	for {
		if _, err := d.client.Version(d.ctx(5 * time.Second)); err == nil {
			return
		}
		select {
		case err := <-d.ended:
			d.cmd = nil
			d.t.Fatalf("the daemon ended at its start: %v\n%s", err, d.log.Tail(4000))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("the daemon does not answer\n%s", d.log.Tail(4000))
		}
	}
}

// watchOver ends the daemon, and says where both are, when the test has hung: else the time
// limit of all tests ends them without a word of the daemon's.
func (d *daemon) watchOver() {
	if d.watch != nil {
		d.watch.Stop()
	}
	limit := testenv.Limit(d.t, 6*time.Minute) + d.longer
	p := d.cmd.Process
	d.watch = time.AfterFunc(limit, func() {
		var stacks strings.Builder
		pprof.Lookup("goroutine").WriteTo(&stacks, 1)
		d.t.Errorf("the daemon has been up for %v: the test hangs in\n%s", limit, stacks.String())
		d.hung.Store(true)
		p.Signal(syscall.SIGQUIT) // its stacks go to its log, and whoever waits for it fails
	})
}

// down ends the daemon as an init system would.
func (d *daemon) down() {
	if d.cmd == nil {
		return
	}
	d.watch.Stop()
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-d.ended:
		if err != nil {
			d.t.Errorf("the daemon's end after SIGTERM: %v", err)
		}
	case <-time.After(testenv.Limit(d.t, time.Minute)):
		d.t.Error("the daemon did not end within a minute of SIGTERM")
		d.cmd.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
		<-d.ended
	}
	d.cmd = nil
}

// kill ends the daemon with SIGKILL.
func (d *daemon) kill() {
	d.t.Helper()
	d.watch.Stop()
	d.cmd.Process.Kill()
	<-d.ended
	d.cmd = nil
	d.orphaned = leftovers(d.data())
}

func (d *daemon) ctx(timeout time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Limit(d.t, timeout))
	d.t.Cleanup(cancel)
	return ctx
}

// cli runs a verb of the command line and returns its standard output.
func (d *daemon) cli(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Limit(d.t, 5*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "skep"), d.arguments(args)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // one that hangs says where
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("skep %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (d *daemon) command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(d.bin, "skep"), d.arguments(args)...)
}

func (d *daemon) arguments(args []string) []string {
	return append([]string{"--config", filepath.Join(d.dir, "config.toml")}, args...)
}

func (d *daemon) mustCLI(args ...string) string {
	d.t.Helper()
	out, err := d.cli(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// hello deploys the built-in hello function under a name. It has the time to get
// ready that a slow machine needs.
func (d *daemon) hello(name string, flags ...string) {
	d.t.Helper()
	d.mustCLI(append([]string{"deploy", "functions/hello", "--name", name, "--ready-timeout", d.ready().String()}, flags...)...)
}

func (d *daemon) ready() api.Duration { return api.Duration(testenv.Limit(d.t, time.Minute)) }

// answer is a response whose body was read to its end.
type answer struct {
	status int
	body   string
	header http.Header
	err    error
}

var httpClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: 10 * time.Minute}

// get sends a request through the gateway.
func (d *daemon) get(function, path string) answer {
	resp, err := httpClient.Get("http://" + d.gateway + "/function/" + function + path)
	return read(resp, err)
}

// mustGet is get for an answer that has to be 200.
func (d *daemon) mustGet(function, path string) answer {
	d.t.Helper()
	a := d.get(function, path)
	if a.err != nil || a.status != 200 {
		d.t.Fatalf("GET %s of %s: status %d, %v: %s", path, function, a.status, a.err, a.body)
	}
	return a
}

// invoke sends a request through the control API, which may ask for a start
// kind and a memory policy.
func (d *daemon) invoke(r api.InvokeRequest) answer {
	resp, err := d.client.Invoke(d.ctx(3*time.Minute), r)
	return read(resp, err)
}

func read(resp *http.Response, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(b), resp.Header, err}
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, within time.Duration, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(testenv.Limit(t, within))
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// await waits for a condition that something which happens to a function brings
// about: it is looked at when events begin, and at each of the function's.
func (d *daemon) await(function, what string, within time.Duration, ok func() error) {
	d.t.Helper()
	var last error
	err := d.client.Events(d.ctx(within), api.EventQuery{Function: function}, func(api.Event) error {
		if last = ok(); last == nil {
			return errHappened
		}
		return nil
	})
	if !errors.Is(err, errHappened) {
		d.t.Fatalf("%s: not within %v: %v, %v", what, within, last, err)
	}
}

var errHappened = errors.New("it has happened")

// gone waits until a function has no instance.
func (d *daemon) gone(function string) {
	d.t.Helper()
	d.await(function, "its instances end", time.Minute, func() error {
		is, err := d.client.Instances(d.ctx(5*time.Second), function)
		if err == nil && len(is) > 0 {
			err = fmt.Errorf("%d are left: %+v", len(is), is)
		}
		return err
	})
}

// leftovers lists what a daemon on a data directory might leave on a host:
// marked processes, namespaces, links, mounts, half-made files. What the host
// has one name space for carries a digest of the data directory.
func leftovers(data string) map[string]bool {
	found := map[string]bool{}
	sum := sha256.Sum256([]byte(data))
	own := hex.EncodeToString(sum[:4])
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range procs {
		args, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline")) // a jailer wipes the environment
		if b, err := os.ReadFile(p); err == nil && (bytes.Contains(b, []byte("SKEP_NODE="+data+"\x00")) || bytes.HasSuffix(args, []byte("SKEP_NODE="+data+"\x00"))) {
			found["process "+filepath.Base(filepath.Dir(p))] = true
		}
	}
	add := func(kind, pattern string) {
		names, _ := filepath.Glob(pattern)
		for _, n := range names {
			found[kind+" "+n] = true
		}
	}
	add("namespace", "/run/netns/*"+own+"*")
	add("half-made snapshot", data+"/snapshots/.*")
	add("half-made image", data+"/images/.*")
	add("run directory", filepath.Dir(data)+"/run/*/*")
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		add("cgroup", root+"/*"+own+"*")
		add("cgroup", root+"/*"+own+"*/*/cgroup.procs")
	}
	if ifs, err := net.Interfaces(); err == nil {
		for _, i := range ifs {
			if strings.Contains(i.Name, own) {
				found["link "+i.Name] = true
			}
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, data) {
				found["mount "+strings.TrimSpace(line)] = true
			}
		}
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, own) {
				found["nft "+strings.TrimSpace(line)] = true
			}
		}
	}
	return found
}
