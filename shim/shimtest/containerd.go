// Package shimtest has tests meet real containerds: each in a mount namespace of
// its own with directories of its own, so that nothing of the host's is touched
// and whatever it starts can be found.
package shimtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/testenv"
)

// daemon is a containerd that there is.
type daemon struct {
	version string
	dir     string // with its programs
}

// daemons are the host's containerd, and the one in the directory that
// testenv.ContainerdEnv names.
var daemons = sync.OnceValues(func() (found []daemon, err error) {
	var dirs []string
	if path, err := exec.LookPath("containerd"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	if dir := os.Getenv(testenv.ContainerdEnv); dir != "" && !slices.Contains(dirs, dir) {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		out, err := exec.Command(filepath.Join(dir, "containerd"), "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("asking %s for its version: %w", dir, err)
		}
		// containerd github.com/containerd/containerd 1.6.20~ds1 REVISION
		words := strings.Fields(string(out))
		if len(words) < 3 {
			return nil, fmt.Errorf("%s/containerd --version says %q", dir, out)
		}
		version, _, _ := strings.Cut(strings.TrimPrefix(words[2], "v"), "~")
		version, _, _ = strings.Cut(version, "+")
		found = append(found, daemon{version, dir})
	}
	return found, nil
})

// program is the shim, built once per test run.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skep-shim-bin-")
	if err != nil {
		return "", err
	}
	for _, pkg := range []string{"cmd/containerd-shim-skep-v2", "cmd/skep-agent", "cmd/skep-store", "shim/shimtest/probe"} {
		if err := testenv.Build(filepath.Join(dir, filepath.Base(pkg)), pkg); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

// Main runs a package's tests and removes what they share. A package that uses
// this one calls it from its TestMain.
func Main(m *testing.M) { Exit(m.Run()) }

// Exit is Main's end, for a package that has something of its own to end before.
func Exit(code int) {
	if builtOnce {
		dir, _ := program()
		os.RemoveAll(dir)
	}
	if sharedOnce {
		dir, _ := shared()
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

var builtOnce, sharedOnce bool

// shared is the data directory of all shims of a test run, so that only the first
// container of an image boots. It is not on a tmpfs, which has no O_DIRECT.
var shared = sync.OnceValues(func() (string, error) { return os.MkdirTemp("/var/tmp", "skep-shim-data-") })

// DataDir is the data directory of all shims of a test run.
func DataDir(t testing.TB) string {
	t.Helper()
	dir, err := shared()
	sharedOnce = true
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Each runs a test with every containerd that there is.
func Each(t *testing.T, f func(t *testing.T, c *Containerd)) {
	t.Helper()
	EachWith(t, Options{}, f)
}

// EachWith is Each with options.
func EachWith(t *testing.T, opts Options, f func(t *testing.T, c *Containerd)) {
	t.Helper()
	testenv.Need(t, "root", "netns", "runc", "containerd")
	found, err := daemons()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found {
		t.Run(d.version, func(t *testing.T) { f(t, start(t, d, opts)) })
	}
}

// Options of a containerd.
type Options struct {
	// CRI has it serve the CRI too, with skep as the runtime handler "skep".
	CRI bool
	// Subnets are those from each of which a pod of the CRI's has an address; default
	// 10.98.0.0/24.
	Subnets []string
	// Env is added to its environment, and so to the shims'.
	Env []string
	// NoSystemd hides the systemd that has started the host.
	NoSystemd bool
}

// Containerd is one that runs.
type Containerd struct {
	t       *testing.T
	Version string
	Dir     string // its directories, and where tests may put files for containers
	Address string // of its socket

	opts   Options
	bin    string // its programs
	shim   string // the shim's directory
	mounts string // the mount namespace's path
	holder *exec.Cmd
	cmd    *exec.Cmd
	log    *os.File
	before []string // what was mounted
}

func start(t *testing.T, d daemon, opts Options) *Containerd {
	t.Helper()
	shim, err := program()
	builtOnce = true
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{t: t, Version: d.version, Dir: testenv.Dir(t), opts: opts, bin: d.dir, shim: shim}
	c.Address = filepath.Join(c.Dir, "c.sock")
	// /run/containerd holds sockets of shims, /run/netns namespaces, /var/lib/cni and
	// /run/nerdctl what CNI and nerdctl keep: all are its own.
	script := "for d in /run/containerd /run/netns /run/nerdctl /var/lib/cni; do mkdir -p $d && mount -t tmpfs tmpfs $d || exit; done; mount --make-shared /run/netns && echo && exec sleep infinity"
	if opts.NoSystemd {
		script = "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && " + script
	}
	flags := []string{"--mount", "--propagation", "private", "sh", "-c", script}
	if opts.CRI { // with a network of its own, for pods' bridge, and IPC, where critest leaves something
		flags[len(flags)-1] = "ip link set lo up && " + script
		flags = append([]string{"--net", "--ipc"}, flags...)
	}
	c.holder = exec.Command("unshare", flags...)
	ready, err := c.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.holder.Stderr = os.Stderr
	if err := c.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end)
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatalf("making a mount namespace: %v", err)
	}
	c.mounts = fmt.Sprintf("/proc/%d/ns/mnt", c.holder.Process.Pid)
	c.before = c.mounted()
	if err := os.WriteFile(filepath.Join(c.Dir, "config.toml"), []byte(c.config()), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.log, err = os.Create(filepath.Join(c.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	c.Up()
	return c
}

func (c *Containerd) config() string {
	disabled := []string{"aufs", "btrfs", "devmapper", "zfs"}
	var b strings.Builder
	fmt.Fprintf(&b, "version = 2\nroot = %q\nstate = %q\noom_score = 0\n", filepath.Join(c.Dir, "root"), filepath.Join(c.Dir, "state"))
	b.WriteString("disabled_plugins = [")
	for _, d := range disabled {
		fmt.Fprintf(&b, "%q, ", "io.containerd.snapshotter.v1."+d)
	}
	if !c.opts.CRI {
		b.WriteString(`"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"`)
	}
	fmt.Fprintf(&b, "]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", c.Address, c.Address+".ttrpc")
	if c.opts.CRI {
		b.WriteString(c.cri())
	}
	return b.String()
}

// cri is the configuration of the CRI, in the form that all versions take.
func (c *Containerd) cri() string {
	return fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = %q
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = %q
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.skep]
runtime_type = "io.containerd.skep.v2"
pod_annotations = ["skep.dev/*", "serving.knative.dev/*"]
`, PauseImage, filepath.Join(c.Dir, "net.d"), filepath.Join(c.Dir, registriesDir))
}

// Up starts the daemon, and returns when it answers.
func (c *Containerd) Up() {
	c.t.Helper()
	cmd := c.Command(filepath.Join(c.bin, "containerd"), "--config", filepath.Join(c.Dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = c.log, c.log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.cmd = cmd
	for end := time.Now().Add(c.Limit(30 * time.Second)); ; {
		ctx, cancel := context.WithTimeout(c.t.Context(), c.Limit(5*time.Second))
		_, err := c.ctr(ctx, "version")
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("containerd %s does not answer: %v\n%s", c.Version, err, c.Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Limit is for how long its test waits where an ordinary machine needs at most d.
func (c *Containerd) Limit(d time.Duration) time.Duration {
	c.t.Helper()
	return testenv.Limit(c.t, d)
}

// Down kills the daemon. Its shims go on.
func (c *Containerd) Down() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.cmd = nil
	}
}

// Reboot kills all that the daemon, which is down, has started. With empty what a
// host that starts anew does not have is gone, too: mounts, cgroups, and what is
// below /run.
func (c *Containerd) Reboot(empty bool) {
	c.t.Helper()
	cgroups := map[string]bool{}
	for all := c.Processes(); len(all) > 0; all = c.Processes() {
		for _, p := range all {
			for _, dir := range cgroupsOf(p.PID) {
				cgroups[dir] = true
			}
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	if !empty {
		return
	}
	c.unmount("/")
	dirs := []string{filepath.Join(c.Dir, "state")}
	for _, sub := range []string{"s", "skep"} {
		dirs = append(dirs, fmt.Sprintf("/proc/%d/root/run/containerd/%s", c.holder.Process.Pid, sub))
	}
	for _, v := range c.opts.Env {
		if dir, ok := strings.CutPrefix(v, "SKEP_RUN_DIR="); ok {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			c.t.Fatal(err)
		}
	}
	for dir := range cgroups {
		for range 100 {
			if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// cgroupsOf are a VMM's own cgroups.
func cgroupsOf(pid int) (dirs []string) {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if !bytes.Contains(env, []byte("SKEP_BUNDLE=")) {
		return nil
	}
	lines, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(lines)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" {
			all, _ := filepath.Glob("/sys/fs/cgroup/*" + f[2])
			dirs = append(dirs, all...)
		}
	}
	return dirs
}

// Command is a program in the daemon's mount namespace, with its environment.
func (c *Containerd) Command(name string, args ...string) *exec.Cmd {
	ns := strings.TrimSuffix(c.mounts, "mnt")
	cmd := exec.Command("nsenter", append([]string{"--mount=" + c.mounts, "--net=" + ns + "net", "--ipc=" + ns + "ipc", name}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+c.shim+":"+c.bin+":"+os.Getenv("PATH"))
	cmd.Env = append(cmd.Env, c.opts.Env...)
	return cmd
}

// Ctr is the client's command line for this daemon.
func (c *Containerd) Ctr(args ...string) *exec.Cmd {
	return c.Command(filepath.Join(c.bin, "ctr"), append([]string{"--address", c.Address}, args...)...)
}

func (c *Containerd) ctr(ctx context.Context, args ...string) (string, error) {
	r := run(ctx, c.Ctr(args...))
	if r.Err != nil || r.Code != 0 {
		return r.Stdout, fmt.Errorf("ctr %s: exit code %d, %v: %s", strings.Join(args, " "), r.Code, r.Err, r.Stderr)
	}
	return r.Stdout, nil
}

// Result of a command that has ended.
type Result struct {
	Code           int
	Stdout, Stderr string
	Err            error // it did not run, or not to its end
}

// Run runs the client to its end.
func (c *Containerd) Run(args ...string) Result {
	c.t.Helper()
	return c.RunWith(nil, args...)
}

// Try is Run of what may come to no end, which the result then says.
func (c *Containerd) Try(args ...string) Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	return run(ctx, c.Ctr(args...))
}

// RunWith is Run with something to read.
func (c *Containerd) RunWith(stdin io.Reader, args ...string) Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), c.Limit(2*time.Minute))
	defer cancel()
	cmd := c.Ctr(args...)
	cmd.Stdin = stdin
	r := run(ctx, cmd)
	if r.Err != nil {
		c.t.Fatalf("ctr %s: %v\n%s%s\n%s", strings.Join(args, " "), r.Err, r.Stdout, r.Stderr, c.Hung())
	}
	return r
}

// Finish runs any command to its end, within two minutes.
func (c *Containerd) Finish(cmd *exec.Cmd) Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	r := run(ctx, cmd)
	if r.Err != nil {
		c.t.Fatalf("%s: %v\n%s%s\n%s", strings.Join(cmd.Args, " "), r.Err, r.Stdout, r.Stderr, c.Log())
	}
	return r
}

// Hung has shims say where each of their goroutines stands, and VMMs what their
// threads wait for in the kernel: why something comes to no end.
func (c *Containerd) Hung() string {
	before := len(c.text())
	var b strings.Builder
	for _, p := range c.Processes() {
		fmt.Fprintf(&b, "process %d: %s\n", p.PID, p.Command)
		waits, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", p.PID))
		for _, path := range waits {
			in, _ := os.ReadFile(path)
			call, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "syscall"))
			fmt.Fprintf(&b, "\tin %s, system call %s\n", in, strings.TrimSpace(string(call)))
		}
		if p.Name == "containerd-shim-skep-v2" {
			_ = syscall.Kill(p.PID, syscall.SIGUSR1)
		}
	}
	time.Sleep(time.Second) // the dumps come by containerd's log
	text := c.text()
	said := strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\"`, `"`).Replace(text[min(before, len(text)):])
	return c.Log() + b.String() + said
}

// Must is Run of what has to succeed.
func (c *Containerd) Must(args ...string) string {
	c.t.Helper()
	r := c.Run(args...)
	if r.Code != 0 {
		c.t.Fatalf("ctr %s: exit code %d\n%s%s\n%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr, c.Log())
	}
	return r.Stdout
}

// run runs a command in a process group of its own, which ends with ctx.
func run(ctx context.Context, cmd *exec.Cmd) Result {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return Result{Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	r := Result{Code: cmd.ProcessState.ExitCode(), Stdout: out.String(), Stderr: errs.String()}
	if exit := (*exec.ExitError)(nil); !stop() {
		r.Err = fmt.Errorf("it has not ended: %w", context.Cause(ctx))
	} else if err != nil && !errors.As(err, &exit) {
		r.Err = err
	}
	return r
}

// Spec writes a container's specification for ctr run --config: that of the probe
// image, over a root directory of its own, after a change.
func (c *Containerd) Spec(id string, change func(*specs.Spec)) (path string) {
	c.t.Helper()
	c.Must("container", "create", ProbeImage, id, "serve", "8080")
	text := c.Must("container", "info", "--spec", id)
	c.Must("container", "delete", id)
	spec := &specs.Spec{}
	if err := json.Unmarshal([]byte(text), spec); err != nil {
		c.t.Fatal(err)
	}
	root := filepath.Join(c.Dir, id+"-root")
	probe, err := os.ReadFile(filepath.Join(c.shim, "probe"))
	if err = errors.Join(err, os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/probe"), probe, 0o755)); err != nil {
		c.t.Fatal(err)
	}
	spec.Root.Path, spec.Process.Args = root, []string{"/bin/probe", "serve", "8080"}
	change(spec)
	b, err := json.Marshal(spec)
	if err != nil {
		c.t.Fatal(err)
	}
	path = filepath.Join(c.Dir, id+".json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// Namespace names one of the namespaces of the daemon and its shims: "mnt", "net".
func (c *Containerd) Namespace(kind string) string {
	c.t.Helper()
	name, err := os.Readlink(filepath.Join(filepath.Dir(c.mounts), kind))
	if err != nil {
		c.t.Fatal(err)
	}
	return name
}

// Import gives an image to the daemon, in a namespace of containerd's.
func (c *Containerd) Import(namespace, ref string, img v1.Image) {
	c.t.Helper()
	path := filepath.Join(c.Dir, "import.tar")
	if err := writeArchive(path, ref, img); err != nil {
		c.t.Fatal(err)
	}
	defer os.Remove(path)
	c.Must("-n", namespace, "images", "import", path)
}

func (c *Containerd) text() string {
	b, _ := os.ReadFile(filepath.Join(c.Dir, "log"))
	return string(b)
}

// Log is the end of what the daemon and its shims have said.
func (c *Containerd) Log() string {
	var lines []string
	for line := range strings.Lines(c.text()) {
		if !strings.Contains(line, "loading plugin") && !strings.Contains(line, "skip loading") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-60):], "")
}

// Process is one that the daemon's mount namespace has.
type Process struct {
	PID     int
	Name    string // of its program
	Command string
}

// Processes are those in the daemon's mount namespace but the daemon's own: shims,
// clients, VMMs; these also in one of their own, by the mark that a shim gives them.
// What runc has put into a container is not among them.
func (c *Containerd) Processes() []Process {
	var found []Process
	want, err := os.Readlink(c.mounts)
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if err != nil || ns != want && !strings.HasPrefix(bundle(dir), c.Dir+"/") || pid == c.holder.Process.Pid || c.cmd != nil && pid == c.cmd.Process.Pid {
			continue
		}
		b, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil {
			continue // it has ended
		}
		found = append(found, Process{pid, filepath.Base(exe), strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")})
	}
	return found
}

// VMM is the process of a container's microVM; 0: there is none.
func (c *Containerd) VMM(id string) (pid int) {
	for _, p := range c.Processes() {
		if filepath.Base(bundle(fmt.Sprintf("/proc/%d", p.PID))) == id {
			pid = p.PID
		}
	}
	return pid
}

// bundle is that of the container whose VMM a process is, by the mark that the shim
// gave it; "" if it is none.
func bundle(proc string) string {
	for _, file := range []string{"environ", "cmdline"} { // as marked.Bears
		b, _ := os.ReadFile(filepath.Join(proc, file))
		for v := range strings.SplitSeq(string(b), "\x00") {
			if path, ok := strings.CutPrefix(v, "SKEP_BUNDLE="); ok {
				return path
			}
		}
	}
	return ""
}

// Shim is the process of a container's shim; 0: there is none.
func (c *Containerd) Shim(id string) int {
	for _, p := range c.Shims() {
		if f := strings.Fields(p.Command); slices.Contains(f, id) && !slices.Contains(f, "start") && !slices.Contains(f, "delete") {
			return p.PID
		}
	}
	return 0
}

// Shims are the shims' processes.
func (c *Containerd) Shims() []Process {
	return slices.DeleteFunc(c.Processes(), func(p Process) bool { return p.Name != "containerd-shim-skep-v2" })
}

// Clean fails the test unless all containers' processes, mounts, files and sockets
// are gone. What takes a moment to end is given some seconds.
func (c *Containerd) Clean() {
	c.t.Helper()
	c.CleanBut(nil)
}

// CleanBut is Clean but for what was there before, as Left has told.
func (c *Containerd) CleanBut(before []string) {
	c.t.Helper()
	var left []string
	for end := time.Now().Add(c.Limit(10 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		left = slices.DeleteFunc(c.Left(), func(l string) bool { return slices.Contains(before, l) })
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	c.t.Errorf("left behind by containerd %s:\n  %s\n%s", c.Version, strings.Join(left, "\n  "), c.Log())
}

// Left is what there is of containers: processes, mounts, files and sockets.
func (c *Containerd) Left() (left []string) {
	for _, p := range c.Processes() {
		left = append(left, fmt.Sprintf("process %d: %s", p.PID, p.Command))
	}
	for _, m := range c.mounted() {
		if !slices.Contains(c.before, m) {
			left = append(left, "mount "+m)
		}
	}
	for _, dir := range []string{filepath.Join(c.Dir, "state"), fmt.Sprintf("/proc/%d/root/run/containerd", c.holder.Process.Pid)} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && (d.Name() == "config.json" || d.Type() == fs.ModeSocket) {
				left = append(left, "file "+path)
			}
			return nil
		})
	}
	return left
}

// unmount unmounts what has been mounted below a directory, whose name ends with a
// slash, since the daemon was first started.
func (c *Containerd) unmount(below string) {
	c.t.Helper()
	for _, path := range slices.Backward(c.mounted()) {
		if slices.Contains(c.before, path) || !strings.HasPrefix(path, below) {
			continue
		}
		if out, err := c.Command("umount", "--lazy", path).CombinedOutput(); err != nil {
			c.t.Fatalf("umount %s: %v: %s", path, err, out)
		}
	}
}

func (c *Containerd) mounted() (paths []string) {
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", c.holder.Process.Pid))
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			paths = append(paths, fields[1])
		}
	}
	return paths
}

// end ends all that was started, whatever happened before.
func (c *Containerd) end() {
	if c.t.Failed() {
		c.t.Logf("the log of containerd %s:\n%s", c.Version, c.Log())
	}
	c.Down()
	for range 100 {
		all := c.Processes()
		if len(all) == 0 {
			break
		}
		for _, p := range all {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// What is mounted below Dir goes with the namespace.
	_ = c.holder.Process.Kill()
	_ = c.holder.Wait()
	if c.log != nil {
		c.log.Close()
	}
}

// Delete removes a container whose task has ended, and says how that had: ctr
// tells of another exit code than 0.
func (c *Containerd) Delete(id string) (code string) {
	c.t.Helper()
	c.Stopped(id)
	r := c.Run("task", "delete", id)
	if r.Code != 0 && r.Code != 1 { // some versions exit with it
		code = strconv.Itoa(r.Code)
	}
	if _, after, ok := strings.Cut(r.Stderr, "non-zero exit code "); ok {
		code = strings.Trim(strings.Fields(after)[0], `"`)
	}
	c.Must("container", "delete", id)
	return code
}

// Stopped waits until containerd says of a container's task that it has ended,
// or is gone.
func (c *Containerd) Stopped(id string) {
	c.t.Helper()
	status := ""
	for end := time.Now().Add(c.Limit(30 * time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if status = c.Status(id); status == "" || status == "STOPPED" {
			return
		}
	}
	c.t.Fatalf("the task of container %s is %q: want it to have stopped\n%s", id, status, c.Log())
}

// Status is what containerd says of a container's task: RUNNING, STOPPED, …; ""
// without one.
func (c *Containerd) Status(id string) string {
	c.t.Helper()
	for line := range strings.Lines(c.Must("task", "list")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return ""
}

// Remove removes a container, with its task when it has one that has ended.
func (c *Containerd) Remove(id string) {
	c.t.Helper()
	c.Stopped(id)
	if c.Status(id) != "" {
		c.Must("task", "delete", id)
	}
	c.Must("container", "delete", id)
}

// Settled fails the test unless the shims' processes become these.
func (c *Containerd) Settled(want []Process) {
	c.t.Helper()
	var now []Process
	for end := time.Now().Add(c.Limit(10 * time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = c.Shims(); slices.Equal(now, want) {
			return
		}
	}
	c.t.Errorf("the shims' processes are %v: want %v", now, want)
}

// Starts runs a container in the background and returns when its task runs.
func (c *Containerd) Starts(id string, args ...string) {
	c.t.Helper()
	c.Must(args...)
	if s := c.Status(id); s != "RUNNING" {
		c.t.Fatalf("the task of container %s is %q: want it to run\n%s", id, s, c.Log())
	}
}

// PID is the process that containerd knows a container's task by.
func (c *Containerd) PID(id string) int {
	c.t.Helper()
	for line := range strings.Lines(c.Must("task", "list")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			pid, _ := strconv.Atoi(f[1])
			return pid
		}
	}
	c.t.Fatalf("container %s has no task", id)
	return 0
}

// Inside runs the probe in the network namespace of a container's task, as a
// sidecar would: on the host, not in the container.
func (c *Containerd) Inside(id string, args ...string) Result {
	c.t.Helper()
	return c.InsideOf(c.PID(id), args...)
}

// InsideOf is Inside of a process's.
func (c *Containerd) InsideOf(pid int, args ...string) Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), c.Limit(time.Minute))
	defer cancel()
	return run(ctx, exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), filepath.Join(c.shim, "probe")}, args...)...))
}
