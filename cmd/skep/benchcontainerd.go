package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/internal/smaps"
)

// ctrBench are the flags of bench containerd.
type ctrBench struct {
	benchFlags
	ctr     ctr
	dataDir string // of the shims
	atOnce  []int
}

// ctrVariant is one way to start a container, or the node's to start an instance.
type ctrVariant struct {
	Name  string
	flags []string // of `ctr containers create`
	node  *variant // no container: the node's start
	runc  bool     // its files are those of containerd's snapshotter
	ready bool     // it goes on from where it was ready, which what ends never is
}

// ctrSample is one measured start: a line of the benchmark's raw data.
type ctrSample struct {
	Run     int           `json:"run"`
	Variant string        `json:"variant"`
	Until   string        `json:"until"`   // answer, exit
	AtOnce  int           `json:"at_once"` // how many were started together
	Cold    string        `json:"cold"`
	Took    time.Duration `json:"took_ns"`
	// Memory when it has answered, -1 where it was not looked at: PSS in bytes of
	// the shim's processes, and of the task's without the guest's memory.
	Shim int64 `json:"shim_bytes"`
	Task int64 `json:"task_bytes"`
}

const untilAnswer, untilExit = "answer", "exit"

func (c *cli) benchContainerdCmd() *cobra.Command {
	o := ctrBench{}
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "measure containers of this host's containerd: runc, microVMs, and the node's own",
		Long: `Measure how containers start under this host's containerd, where skep is a runtime
(skep containerd install): under runc, runsc where its shim is on the PATH, in a
microVM that boots, and under each memory policy in one that is restored, where its
server then starts, and in one in which that runs already; and the latter by
skep's node, on a private daemon. All take turns in one run.
Before each start its files are dropped from the page cache (--cold none: not).

Two things are measured: from "ctr task start" to the first answer of the
container's server, and "ctr run --rm" of a command to its exit. With --at-once
so many are started together, of some kinds. Then how much memory there is
beside the guest's: PSS of the shim, and of its VMM.

Medians and deciles go to stdout; --out keeps raw samples as JSON lines, the
first of which describes the machine.`,
		Example: `  skep bench containerd -n 10 --out containerd.jsonl
  skep bench containerd --policy reap --at-once 10,50`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			for _, n := range o.atOnce {
				if n < 2 || n > 200 {
					return usagef(cmd, "--at-once has %d: want 2 to 200", n)
				}
			}
			if o.cold == coldAll {
				return usagef(cmd, "--cold is all: want none or files")
			}
			return c.benchContainerd(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.function, "function", "hello", "which of the functions that come with skep")
	f.IntVarP(&o.runs, "runs", "n", 10, "runs of each kind")
	f.StringSliceVar(&o.policies, "policy", []string{"mmap", "reap", "stream"}, "memory policies of restores")
	f.IntSliceVar(&o.atOnce, "at-once", nil, "how many to start together, too: 10,50")
	f.StringVar(&o.cold, "cold", coldFiles, "what leaves the page cache before a start: none or files")
	f.StringVarP(&o.out, "out", "o", "", "`FILE` for raw samples, as JSON lines")
	f.StringVar(&o.ctr.address, "containerd-address", "/run/containerd/containerd.sock", "socket of containerd")
	f.StringVar(&o.ctr.program, "ctr", "ctr", "containerd's command line")
	f.StringVar(&o.dataDir, "shim-data-dir", "/var/lib/skep-containerd", "where shims keep disks and snapshots")
	c.keyFlags(f, "vmm", "accel", "qemu", "firecracker", "kernel", "kernel_modules", "kernel_dir", "data_dir", "log_level")
	return cmd
}

// ctrVariants are what takes turns.
func (o ctrBench) variants() (all []ctrVariant) {
	skep := func(name string, annotations ...string) ctrVariant {
		v := ctrVariant{Name: name, flags: []string{"--runtime", "io.containerd.skep.v2", "--annotation", "skep.dev/port=" + ctrPort}}
		for _, a := range annotations {
			v.flags = append(v.flags, "--annotation", a)
		}
		return v
	}
	all = append(all, ctrVariant{Name: "runc", runc: true, flags: []string{"--runtime", "io.containerd.runc.v2"}})
	if _, err := exec.LookPath("containerd-shim-runsc-v1"); err == nil {
		all = append(all, ctrVariant{Name: "runsc", runc: true, flags: []string{"--runtime", "io.containerd.runsc.v1"}})
	}
	all = append(all, skep("boot", "skep.dev/snapshot=off"))
	for _, p := range o.policies {
		all = append(all, skep("restore "+p, "skep.dev/policy="+p, "skep.dev/snapshot=base"))
	}
	for _, p := range o.policies {
		v := skep("ready "+p, "skep.dev/policy="+p)
		v.ready = true
		all = append(all, v)
	}
	for _, p := range o.policies {
		all = append(all, ctrVariant{Name: "node " + p, node: &variant{api.StartRestore, p}})
	}
	return all
}

// ctrPort is where the function serves in its container.
const ctrPort = "8080"

// ctrRun is a run of the benchmark.
type ctrRun struct {
	ctrBench
	m       *measurement // of the node
	say     func(string, ...any)
	next    int      // number of the next container
	layered []string // files of the image, as runc's containers have them
}

func (c *cli) benchContainerd(ctx context.Context, o ctrBench) (err error) {
	p, err := c.startPrivate(ctx, "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for _, policy := range o.policies {
		if !slices.Contains(p.version.Policies, policy) {
			return &usageError{msg: fmt.Sprintf("no memory policy %q (there are %s)", policy, strings.Join(p.version.Policies, ", "))}
		}
	}
	raw, closeRaw, err := o.openOut()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRaw()) }()
	daemon, err := o.ctr.run(ctx, "version")
	if err != nil {
		return fmt.Errorf("asking containerd at %s: %w", o.ctr.address, err)
	}
	host := describeMachine(p.version, o.dataDir)
	if err := raw.Encode(map[string]any{"machine": host, "containerd": containerdVersion(daemon), "function": o.function, "cold": o.cold}); err != nil {
		return err
	}
	m, remove, err := c.deployPrivate(ctx, p, o.function, api.Function{
		Name: "bench", VCPUs: 1, MemoryMiB: 256, KeepAlive: api.Duration(time.Second), MaxInstances: max(1, slices.Max(append(o.atOnce, 1))),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	m.cold = o.cold
	ref, err := c.localImage(ctx, "functions/"+o.function)
	if err != nil {
		return err
	}
	dir, ok := strings.CutPrefix(ref, "dir:")
	if !ok {
		return fmt.Errorf("image %s of function %s is not a directory", ref, o.function)
	}
	defer func() { err = errors.Join(err, o.ctr.leave(context.WithoutCancel(ctx))) }()
	if err := errors.Join(o.ctr.clear(ctx), o.ctr.load(ctx, dir, "skep.invalid/bench/"+o.function+":latest")); err != nil {
		return err
	}
	r := &ctrRun{ctrBench: o, m: m, say: c.say}
	samples, err := r.all(ctx, raw)
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(map[string]any{"machine": host, "samples": samples})
	}
	fmt.Fprintf(c.out, "%s · containerd %s · %s · %d CPUs · Linux %s · %s\n\n", o.function, containerdVersion(daemon), host.VMM, host.CPUs, host.Kernel, host.Disk)
	if err := table(c.out, ctrTable(samples)); err != nil || len(o.atOnce) == 0 {
		return err
	}
	fmt.Fprintln(c.out)
	return table(c.out, ctrCrowdTable(samples))
}

// leave removes all that the benchmark gave to containerd.
func (c *ctr) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := c.clear(ctx)
	if c.image != "" {
		_, rm := c.run(ctx, "images", "remove", "--sync", c.image)
		err = errors.Join(err, rm)
	}
	_, rm := c.run(ctx, "namespaces", "remove", ctrNamespace)
	return errors.Join(err, rm)
}

// containerdVersion finds the server's in what `ctr version` says.
func containerdVersion(text string) string {
	_, server, _ := strings.Cut(text, "Server:")
	for line := range strings.Lines(server) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Version:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "of unknown version"
}

func (r *ctrRun) all(ctx context.Context, raw *json.Encoder) (samples []ctrSample, err error) {
	variants := r.variants()
	take := func(got []ctrSample, err error) error {
		for _, s := range got {
			if err := raw.Encode(s); err != nil {
				return err
			}
		}
		samples = append(samples, got...)
		return err
	}
	// One of each that does not count makes what the others start from.
	for _, v := range variants {
		r.say("preparing %s", v.Name)
		if _, err := r.starts(ctx, -1, v, 1); err != nil {
			return nil, err
		}
	}
	for run := range r.runs {
		r.say("run %d of %d", run+1, r.runs)
		for _, v := range variants {
			if err := take(r.starts(ctx, run, v, 1)); err != nil {
				return nil, err
			}
			if v.node != nil || v.ready {
				continue
			}
			s, err := r.exit(ctx, run, v)
			if err := take([]ctrSample{s}, err); err != nil {
				return nil, err
			}
		}
	}
	for _, n := range r.atOnce {
		for run := range max(1, r.runs/3) {
			r.say("%d at once, run %d", n, run+1)
			for _, v := range variants {
				if v.Name == "boot" && n > 10 {
					continue // would measure nothing but the host's patience
				}
				if err := take(r.starts(ctx, run, v, n)); err != nil {
					return nil, err
				}
			}
		}
	}
	return samples, nil
}

// starts starts n containers together, each up to its first answer.
func (r *ctrRun) starts(ctx context.Context, run int, v ctrVariant, n int) (_ []ctrSample, err error) {
	samples, errs := make([]ctrSample, n), make([]error, n)
	for i := range samples {
		samples[i] = ctrSample{Run: run, Variant: v.Name, Until: untilAnswer, AtOnce: n, Cold: r.cold, Shim: -1, Task: -1}
	}
	loose := make(chan struct{})
	var wg sync.WaitGroup
	if v.node != nil {
		if err := errors.Join(r.m.quiet(ctx), r.m.chill(ctx)); err != nil {
			return nil, err
		}
		for i := range samples {
			wg.Go(func() {
				<-loose
				_, samples[i].Took, errs[i] = r.m.timed(ctx, *v.node)
			})
		}
		close(loose)
		wg.Wait()
		return samples, errors.Join(errs...)
	}
	places := make([]*ctrPlace, n)
	defer func() {
		ctx := context.WithoutCancel(ctx)
		for _, p := range places {
			if p != nil {
				err = errors.Join(err, r.ctr.remove(ctx, p.id), p.close())
			}
		}
	}()
	for i := range places {
		r.next++
		if places[i], err = r.place(ctx, fmt.Sprintf("%s-%d", strings.ReplaceAll(v.Name, " ", "-"), r.next), v); err != nil {
			return nil, err
		}
	}
	if v.runc && r.layered == nil {
		if r.layered, err = r.ctr.rootFiles(ctx, places[0].id); err != nil {
			return nil, err
		}
	}
	if err := r.chill(v); err != nil {
		return nil, err
	}
	for i, p := range places {
		wg.Go(func() {
			<-loose
			samples[i].Took, errs[i] = r.answer(ctx, p)
		})
	}
	close(loose)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	if n == 1 {
		pid, err := r.ctr.pid(ctx, places[0].id)
		if err != nil {
			return nil, err
		}
		if samples[0].Shim, samples[0].Task, err = beside(pid); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// ctrPlace is a container that is made, with a network namespace of its own.
type ctrPlace struct {
	id     string
	holder *exec.Cmd // keeps the namespace
}

func (r *ctrRun) place(ctx context.Context, id string, v ctrVariant) (_ *ctrPlace, err error) {
	// It ends with this process, which holds what it reads from.
	p := &ctrPlace{id: id, holder: exec.Command("cat")}
	p.holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET, Setpgid: true}
	if _, err := p.holder.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.holder.Start(); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	ns, err := netns.GetFromPath(p.netns())
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, err
	}
	args := append([]string{"containers", "create", "--with-ns", "network:" + p.netns(), "--env", "PORT=" + ctrPort}, v.flags...)
	_, err = r.ctr.run(ctx, append(args, r.ctr.image, id)...)
	return p, err
}

func (p *ctrPlace) netns() string { return fmt.Sprintf("/proc/%d/ns/net", p.holder.Process.Pid) }

func (p *ctrPlace) close() error {
	err := p.holder.Process.Kill()
	_ = p.holder.Wait() // killed
	return err
}

// answerLimit is how long a container may take to answer.
const answerLimit = 5 * time.Minute

// answer starts a container's task and, as who waits for that does, asks its server
// when it has been started: from within the container's network namespace, until it
// answers.
func (r *ctrRun) answer(ctx context.Context, p *ctrPlace) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("container %s has not answered after %v", p.id, answerLimit))
	defer cancel()
	began := time.Now()
	if _, err := r.ctr.run(ctx, "tasks", "start", "--detach", "--null-io", p.id); err != nil {
		return 0, err
	}
	err = ask(ctx, p.netns())
	return time.Since(began), err
}

// While nobody answers it is asked again soon at first, and then after a hundredth of
// the time that has gone: many that are started together would get in the way of what
// they wait for. One connection may take a tenth of it: a packet that nobody was there
// for would be sent again after a second only, and a guest with little of a processor
// takes its time.
const (
	askLeast  = time.Millisecond
	dialLeast = 50 * time.Millisecond
)

// ask calls the server at ctrPort of a network namespace until it answers.
func ask(ctx context.Context, path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread stays in the namespace, and ends
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		for began := time.Now(); err == nil && ctx.Err() == nil; time.Sleep(max(askLeast, time.Since(began)/100)) {
			if answers(max(dialLeast, time.Since(began)/10)) {
				break
			}
		}
		done <- errors.Join(err, context.Cause(ctx))
	}()
	return <-done
}

func answers(limit time.Duration) bool {
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:"+ctrPort, limit)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // no answer then is none
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.Contains(line, " 200 ")
}

// chill drops the files of the next start from the page cache.
func (r *ctrRun) chill(v ctrVariant) error {
	if r.cold == coldNone {
		return nil
	}
	files := r.layered
	if !v.runc {
		var err error
		if files, err = filesBelow(filepath.Join(r.dataDir, "images"), filepath.Join(r.dataDir, "snapshots")); err != nil {
			return err
		}
	}
	_, err := experiment.DropCache(files)
	return err
}

// beside is the memory of a container beside a guest's, PSS in bytes: of the shim's
// processes, and of the task's. The task's parent is the shim.
func beside(pid int) (shim, task int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	_, after, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(after)
	if len(fields) < 2 {
		return 0, 0, fmt.Errorf("process %d: its stat is %q", pid, b)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0, 0, err
	}
	if shim, err = pss(parent); err != nil {
		return 0, 0, err
	}
	task, err = pss(pid)
	return shim, task, err
}

// pss is the PSS of a process beside its guest's memory, where it has one.
func pss(pid int) (int64, error) {
	all, err := smaps.Of(pid)
	own, _ := smaps.Beside(all)
	return own, err
}

// ctrTable has a row for each kind of start, one at a time.
func ctrTable(samples []ctrSample) [][]string {
	rows := [][]string{{"", "TO ANSWER ms", "P10", "P90", "OF BOOT", "OF NODE", "TO EXIT ms", "P10", "P90", "SHIM MiB", "TASK MiB"}}
	type row struct {
		answer, exit []time.Duration
		shim, task   []int64
	}
	var order []string
	all := map[string]*row{}
	for _, s := range samples {
		if s.AtOnce != 1 {
			continue
		}
		r := all[s.Variant]
		if r == nil {
			r = &row{}
			all[s.Variant], order = r, append(order, s.Variant)
		}
		if s.Until == untilExit {
			r.exit = append(r.exit, s.Took)
			continue
		}
		r.answer = append(r.answer, s.Took)
		if s.Shim >= 0 {
			r.shim, r.task = append(r.shim, s.Shim), append(r.task, s.Task)
		}
	}
	for _, r := range all {
		slices.Sort(r.answer)
		slices.Sort(r.exit)
		slices.Sort(r.shim)
		slices.Sort(r.task)
	}
	ratio := func(a time.Duration, of string) string {
		if r := all[of]; r != nil && len(r.answer) > 0 {
			return fmt.Sprintf("%.2f", float64(a)/float64(quantile(r.answer, 0.5)))
		}
		return "-"
	}
	mib := func(sorted []int64) string {
		if len(sorted) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f", float64(sorted[len(sorted)/2])/(1<<20))
	}
	for _, name := range order {
		r := all[name]
		median := quantile(r.answer, 0.5)
		policy := strings.TrimPrefix(strings.TrimPrefix(name, "restore "), "ready ")
		rows = append(rows, []string{name, millis(median), millis(quantile(r.answer, 0.1)), millis(quantile(r.answer, 0.9)), ratio(median, "boot"), ratio(median, "node "+policy),
			millis(quantile(r.exit, 0.5)), millis(quantile(r.exit, 0.1)), millis(quantile(r.exit, 0.9)), mib(r.shim), mib(r.task)})
	}
	return rows
}

// ctrCrowdTable has a row for each kind and number of starts together.
func ctrCrowdTable(samples []ctrSample) [][]string {
	rows := [][]string{{"", "AT ONCE", "P50 ms", "LAST ms", "LAST PER START ms"}}
	type key struct {
		variant string
		n       int
	}
	var order []key
	took := map[key][]time.Duration{}
	last := map[key]map[int]time.Duration{}
	for _, s := range samples {
		if s.AtOnce == 1 {
			continue
		}
		k := key{s.Variant, s.AtOnce}
		if last[k] == nil {
			last[k], order = map[int]time.Duration{}, append(order, k)
		}
		took[k] = append(took[k], s.Took)
		last[k][s.Run] = max(last[k][s.Run], s.Took)
	}
	for _, k := range order {
		var ends []time.Duration
		for _, d := range last[k] {
			ends = append(ends, d)
		}
		slices.Sort(ends)
		slices.Sort(took[k])
		end := quantile(ends, 0.5)
		rows = append(rows, []string{k.variant, strconv.Itoa(k.n), millis(quantile(took[k], 0.5)), millis(end), millis(end / time.Duration(k.n))})
	}
	return rows
}

// exit runs a command in a container to its end.
func (r *ctrRun) exit(ctx context.Context, run int, v ctrVariant) (ctrSample, error) {
	s := ctrSample{Run: run, Variant: v.Name, Until: untilExit, AtOnce: 1, Cold: r.cold, Shim: -1, Task: -1}
	r.next++
	id := fmt.Sprintf("exit-%d", r.next)
	args := append([]string{"run", "--rm"}, v.flags...)
	if r.function == "hello" {
		args = append(args, "--env", "HELLO_EXIT=0", r.ctr.image, id)
	} else {
		args = append(args, r.ctr.image, id, "/usr/bin/python3", "-c", "pass")
	}
	if err := r.chill(v); err != nil {
		return s, err
	}
	began := time.Now()
	_, err := r.ctr.run(ctx, args...)
	s.Took = time.Since(began)
	return s, err
}
