package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/testbed/remote"
	"github.com/skep-dev/skep/vmm"
)

// defaultPatterns are the packages for which it matters that KVM, Firecracker
// or a kernel with all of cgroup v2 is there.
var defaultPatterns = []string{"./vmm/...", "./internal/cgroup", "./internal/sys", "./guest/agent", "./test", "./test/containerd"}

// testOptions are the flags of `testbed test`.
type testOptions struct {
	*options
	run      string
	verbose  bool
	parallel int
	where    string
	ifFound  bool
}

func testCommand(o *options) *cobra.Command {
	t := testOptions{options: o}
	cmd := &cobra.Command{
		Use:   "test [PACKAGE...]",
		Short: "run packages' tests in the host",
		Long: `Run packages' tests in the host (default: ` + strings.Join(defaultPatterns, " ") + `).
What is there is required, so that nothing is skipped for the lack of it. Where
this machine has hardware KVM and the driver is root, they run right here.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			found := t.findFirecracker() != ""
			switch {
			case !found && t.ifFound:
				say("tests with Firecracker skipped: %s", noFirecracker)
				return nil
			case !found && len(args) == 0:
				return errors.New(noFirecracker)
			case len(args) == 0:
				args = defaultPatterns
			}
			ctx, cancel := t.context(cmd.Context())
			defer cancel()
			return t.test(ctx, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&t.run, "run", "", "only tests that match, as of go test")
	flags.BoolVarP(&t.verbose, "verbose", "v", false, "print all output as it comes; it is kept in any case")
	flags.IntVarP(&t.parallel, "parallel", "p", 1, "packages at once")
	flags.StringVar(&t.where, "where", "auto", "auto, vm, or here: on this machine itself")
	flags.BoolVar(&t.ifFound, "if-found", false, "without Firecracker do nothing but say so")
	return cmd
}

func (t *testOptions) test(ctx context.Context, patterns []string) error {
	switch t.where {
	case "here":
		return t.testHere(ctx, patterns)
	case "auto":
		if os.Geteuid() == 0 && vmm.HardwareKVM(ctx) == nil {
			return t.testHere(ctx, patterns)
		}
	case "vm":
	default:
		return fmt.Errorf("--where %s: auto, vm and here are known", t.where)
	}
	packages, err := packagePaths(ctx, patterns)
	if err != nil {
		return err
	}
	p, err := gather(ctx, packages, t.findFirecracker())
	if err != nil {
		return err
	}
	return t.testInHost(ctx, packages, p)
}

// testHere has go test do it, on a machine that has what the host would have.
func (t *testOptions) testHere(ctx context.Context, patterns []string) error {
	args := []string{"test", "-count=1", "-timeout=" + t.timeout.String(), "-p=" + fmt.Sprint(t.parallel), "-run=" + t.run}
	if t.verbose {
		args = append(args, "-v")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, patterns...)...)
	cmd.Env = os.Environ()
	if f := t.findFirecracker(); f != "" {
		cmd.Env = append(cmd.Env, "SKEP_FIRECRACKER="+f)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exitCode(exit.ExitCode())
	}
	return err
}

func (t *testOptions) testInHost(ctx context.Context, packages []string, p payload) (err error) {
	runDir, err := newRun()
	if err != nil {
		return err
	}
	say("output is kept in %s", runDir)
	h, err := t.host(ctx, p, runDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.done()) }()
	var wg sync.WaitGroup
	results := make([]*result, len(packages))
	slots := make(chan struct{}, max(1, t.parallel))
	for i, pkg := range packages {
		slots <- struct{}{} // in order
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = t.testPackage(ctx, h, pkg, runDir)
			results[i].report(os.Stdout)
		})
	}
	wg.Wait()
	if ctx.Err() == nil {
		err = h.fetchOut(ctx, filepath.Join(runDir, "out"))
	}
	if failed := slices.IndexFunc(results, func(r *result) bool { return r.err != nil }); failed >= 0 {
		err = errors.Join(err, fmt.Errorf("tests failed; output and the host's console are in %s", runDir))
	}
	return err
}

// result is what a package's tests came to.
type result struct {
	pkg   string
	took  time.Duration
	log   string // path of the output
	out   []byte
	err   error
	shown bool // out was printed as it came
}

// lastWords is what tests may take to print stacks when they run out of time.
const lastWords = 30 * time.Second

func (t *testOptions) testPackage(ctx context.Context, h *host, pkg, runDir string) *result {
	r := &result{pkg: pkg, log: filepath.Join(runDir, strings.ReplaceAll(pkg, "/", "-")+".log"), shown: t.verbose}
	args := []string{testBinary(pkg), "-test.v", "-test.run=" + t.run}
	if end, ok := ctx.Deadline(); ok {
		args = append(args, "-test.timeout="+max(time.Until(end)-lastWords, time.Second).String())
	} else {
		args = append(args, "-test.timeout=0")
	}
	f, err := os.Create(r.log)
	if err != nil {
		r.err = err
		return r
	}
	var out bytes.Buffer
	both := &lockedWriter{w: io.MultiWriter(f, &out)}
	if t.verbose {
		both.w = io.MultiWriter(f, &out, os.Stdout)
	}
	began := time.Now()
	code, err := h.run(ctx, remote.Command{
		Args: args, Dir: path.Join(sourcesIn, pkg), Env: environment(t.findFirecracker() != ""),
	}, nil, both, both)
	if err == nil && code != 0 {
		err = exitCode(code)
	}
	r.took, r.out, r.err = time.Since(began), out.Bytes(), errors.Join(err, f.Close())
	return r
}

var skipped = regexp.MustCompile(`(?m)^\s*--- SKIP: `)

// report prints what go test would, and how many tests were skipped.
func (r *result) report(w io.Writer) {
	state := "ok  "
	if r.err != nil {
		state = "FAIL"
	}
	if r.err != nil && !r.shown {
		w.Write(tail(r.out, 16<<10))
	}
	note := ""
	if n := len(skipped.FindAllIndex(r.out, -1)); n > 0 {
		note = fmt.Sprintf("\t%d skipped", n)
	}
	if r.err != nil {
		note += fmt.Sprintf("\t%v; all of its output: %s", r.err, r.log)
	}
	fmt.Fprintf(w, "%s\t%s\t%.1fs%s\n", state, r.pkg, r.took.Seconds(), note)
}

// tail is the end of b, from the start of a line.
func tail(b []byte, n int) []byte {
	if len(b) <= n {
		return b
	}
	b = b[len(b)-n:]
	return b[bytes.IndexByte(b, '\n')+1:]
}

// lockedWriter lets two goroutines write.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
