package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/report"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/testbed/remote"
	"github.com/skep-dev/skep/vmm"
)

// paper runs the paper's experiments on Firecracker, in a host or here, and
// keeps the samples in a directory of this machine while they come.
type paper struct {
	*options
	out       string
	functions []string
	only      []string
	runs      int
	quick     bool
	maxVMs    int
	where     string
	progress  io.Writer     // what skep says
	every     time.Duration // between two times that samples are brought out
}

// Which experiments are run: every one whose times mean something on Firecracker.
// Those that count pages say nothing that they do not say on QEMU.
var (
	ofEach     = []string{"policies", "breakdown", "recording"} // of a function, which is deployed once for them
	ofSimplest = []string{"policies", "steps", "breakdown", "recording"}
	apart      = []string{"concurrency"} // deploys functions of its own
	slowest    = []string{"storage"}     // so does it
)

const (
	// runsInHost is how many runs of each variant there are unless a flag says: an
	// emulated host takes a tenth of a minute and more for each.
	runsInHost = 3
	// vmsInHost is how many microVMs an emulated host starts at once, at most.
	vmsInHost = 4
	// bringOut is how often samples are brought out: what is lost with a host.
	bringOut = 20 * time.Second
)

func paperCommand(o *options) *cobra.Command {
	p := paper{options: o, every: bringOut, progress: io.Discard}
	cmd := &cobra.Command{
		Use:   "paper",
		Short: "run the paper's experiments on Firecracker, in the host, and make the report",
		Long: `Run the paper's experiments on Firecracker in the host, function by function, and
make the report. Images are made on this machine and brought to the host as a
disk of their own. Samples are brought to --out while they come; run again with
the same --out it goes on where it was, whoever was interrupted: a host that
hangs or dies is followed by another. Where this machine has hardware KVM and
the driver is root, they run right here. It has no --timeout unless one is set.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("timeout") {
				p.timeout = 0
			}
			if isatty.IsTerminal(os.Stderr.Fd()) {
				p.progress = os.Stderr
			}
			ctx, cancel := p.context(cmd.Context())
			defer cancel()
			return p.run(ctx)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&p.out, "out", "o", "paper-firecracker", "directory of results; what it has is not measured again")
	flags.StringSliceVar(&p.functions, "functions", functions.Bench(), "which of the functions that come with skep")
	flags.StringSliceVar(&p.only, "only", nil, "only these of the experiments "+strings.Join(allOf(pieces([]string{""}, nil)), ", "))
	flags.IntVarP(&p.runs, "runs", "n", 0, fmt.Sprintf("runs of each variant (default: %d in the host, here as many as each experiment needs)", runsInHost))
	flags.IntVar(&p.maxVMs, "max-vms", 0, fmt.Sprintf("microVMs at once, in concurrency (default: %d in the host, 8 here)", vmsInHost))
	flags.BoolVar(&p.quick, "quick", false, "two functions, two runs, few at once")
	flags.StringVar(&p.where, "where", "auto", "auto, vm, or here: on this machine itself, with the programs in bin")
	return cmd
}

// piece is what one run of skep measures.
type piece struct {
	function    string
	experiments []string
}

// pieces are all there is to do, in order: of each function what needs it deployed
// once, then what deploys its own, then what takes longest. With only given, its
// experiments and no others.
func pieces(names, only []string) (list []piece) {
	simplest := names[0]
	for _, name := range names {
		if name == "helloworld" {
			simplest = name
		}
	}
	add := func(function string, experiments []string) {
		var wanted []string
		for _, e := range experiments {
			if len(only) == 0 || slices.Contains(only, e) {
				wanted = append(wanted, e)
			}
		}
		if len(wanted) > 0 {
			list = append(list, piece{function, wanted})
		}
	}
	for _, name := range names {
		if name == simplest {
			add(name, ofSimplest)
		} else {
			add(name, ofEach)
		}
	}
	add(simplest, apart)
	for _, name := range names {
		add(name, slowest)
	}
	return list
}

// allOf are the experiments of pieces, each once.
func allOf(list []piece) (names []string) {
	for _, p := range list {
		for _, e := range p.experiments {
			if !slices.Contains(names, e) {
				names = append(names, e)
			}
		}
	}
	return names
}

func (p *paper) run(ctx context.Context) error {
	if p.quick && len(p.functions) > 2 {
		p.functions = p.functions[:2]
	}
	if err := p.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(p.out, 0o755); err != nil {
		return err
	}
	here := p.where == "here" || p.where == "auto" && os.Geteuid() == 0 && vmm.HardwareKVM(ctx) == nil
	list := pieces(p.functions, p.only)
	var err error
	if here {
		err = p.allHere(ctx, list)
	} else {
		err = p.inHosts(ctx, list)
	}
	n := p.measured()
	if err != nil && n > 0 {
		say("what was measured is kept in %s: run the same again to go on", p.out)
	}
	if n > 0 && !here {
		err = errors.Join(err, p.report(context.WithoutCancel(ctx)))
	}
	return err
}

func (p *paper) check() error {
	known := allOf(pieces([]string{""}, nil))
	switch {
	case p.findFirecracker() == "":
		return errors.New(noFirecracker)
	case len(p.functions) == 0:
		return errors.New("--functions is empty")
	case p.runs < 0 || p.maxVMs < 0:
		return errors.New("--runs and --max-vms want 1 or more")
	case !slices.Contains([]string{"auto", "vm", "here"}, p.where):
		return fmt.Errorf("--where %s: auto, vm and here are known", p.where)
	}
	for _, f := range p.functions {
		if !slices.Contains(functions.Names(), f) {
			return fmt.Errorf("--functions has %q: there are %s", f, strings.Join(functions.Names(), ", "))
		}
	}
	for _, e := range p.only {
		if !slices.Contains(known, e) {
			return fmt.Errorf("--only has %q: there are %s", e, strings.Join(known, ", "))
		}
	}
	return nil
}

// arguments are skep's for a piece.
func (p *paper) arguments(of piece, out string) []string {
	args := []string{"experiment", "all", "--vmm", "firecracker", "--out", out,
		"--functions", of.function, "--only", strings.Join(of.experiments, ",")}
	if p.quick {
		args = append(args, "--quick")
	}
	if p.runs > 0 {
		args = append(args, "--runs", strconv.Itoa(p.runs))
	}
	if p.maxVMs > 0 {
		args = append(args, "--max-vms", strconv.Itoa(p.maxVMs))
	}
	return args
}

// allHere measures on this machine itself.
func (p *paper) allHere(ctx context.Context, list []piece) error {
	var errs []error
	for _, of := range list {
		cmd := exec.CommandContext(ctx, filepath.Join("bin", "skep"), append(p.arguments(of, p.out), "--firecracker", p.findFirecracker())...)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it removes what it has made
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s of %s: %w", strings.Join(of.experiments, ", "), of.function, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// measured is how many samples there are on this machine.
func (p *paper) measured() int {
	d, err := experiment.Load(p.out)
	if err != nil {
		return 0
	}
	return len(d.Samples)
}

// report has skep make the report, on this machine.
func (p *paper) report(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, builtProgram("cmd/skep"), "experiment", "report", p.out)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making the report: %w: %s", err, out)
	}
	say("the report: %s", filepath.Join(p.out, report.File))
	return nil
}

// inHosts measures in one host after another, as long as each brings it on.
func (p *paper) inHosts(ctx context.Context, left []piece) error {
	if p.runs == 0 && !p.quick {
		p.runs = runsInHost
	}
	if p.maxVMs == 0 && !p.quick {
		p.maxVMs = vmsInHost
	}
	files, err := gather(ctx, nil, p.findFirecracker())
	if err != nil {
		return err
	}
	const s3 = "functions/s3"
	if err := files.addProgram(ctx, s3); err != nil {
		return err
	}
	files[path.Join(binIn, "skep-s3")] = files[path.Join(programsIn, s3)]
	var failed []error
	for len(left) > 0 {
		before := p.measured()
		done, err := p.inHost(ctx, files, left, &failed)
		left = left[done:]
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && done == 0 && p.measured() == before:
			return errors.Join(append(failed, err)...)
		case err != nil:
			say("%v; another host goes on", err)
		}
	}
	return errors.Join(failed...)
}

// inHost measures pieces in a host and says how many were done before it died;
// one that skep had no luck with is done, and among the failed.
func (p *paper) inHost(ctx context.Context, files payload, list []piece, failed *[]error) (done int, err error) {
	runDir, err := newRun()
	if err != nil {
		return 0, err
	}
	images, err := imagesDisk(ctx, p.functions)
	if err != nil {
		return 0, err
	}
	m, err := p.start(ctx, files, images, runDir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	log, err := os.Create(filepath.Join(runDir, "paper.log"))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	in := &measuring{paper: p, host: &host{dial: m.dial, done: m.close}, dir: outIn + "/paper", program: binIn + "/skep", log: log}
	if err := in.prepare(ctx); err != nil {
		return 0, err
	}
	for _, of := range list {
		err := in.measure(ctx, of)
		if code := exitCode(0); errors.As(err, &code) {
			*failed = append(*failed, fmt.Errorf("%s of %s: %w; its output: %s", strings.Join(of.experiments, ", "), of.function, err, log.Name()))
		} else if err != nil {
			return done, err
		}
		done++
	}
	return done, nil
}

// measuring is a host in which pieces are measured.
type measuring struct {
	*paper
	host    *host
	dir     string // of results, in the host
	program string // skep, in the host
	log     io.Writer
}

// prepare has the host's disk take what skep expects in its cache, and the control
// groups limit disks.
func (m *measuring) prepare(ctx context.Context) error {
	const script = `mkdir -p ~/.cache/skep && cp -r ` + imagesIn + `/cache/. ~/.cache/skep/ && echo +io >/sys/fs/cgroup/cgroup.subtree_control`
	if err := m.shell(ctx, script, nil, io.Discard); err != nil {
		return fmt.Errorf("bringing the images to the host: %w", err)
	}
	return m.bringIn(ctx)
}

// shell runs a script in the host.
func (m *measuring) shell(ctx context.Context, script string, in io.Reader, out io.Writer, args ...string) error {
	var errs bytes.Buffer
	code, err := m.host.run(ctx, remote.Command{Args: append([]string{"sh", "-c", script, "sh"}, args...)}, in, out, &errs)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s", code, bytes.TrimSpace(errs.Bytes()))
	}
	return err
}

// bringIn gives the host the samples that there are.
func (m *measuring) bringIn(ctx context.Context) error {
	f, err := os.Open(filepath.Join(m.out, experiment.SamplesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m.shell(ctx, `mkdir -p "$1"`, nil, io.Discard, m.dir)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.shell(ctx, `mkdir -p "$1" && cat >"$1/$2"`, f, io.Discard, m.dir, experiment.SamplesFile); err != nil {
		return fmt.Errorf("bringing samples to the host: %w", err)
	}
	return nil
}

// save brings out the samples. The last may be cut short, which is seen when
// they are read.
func (m *measuring) save(ctx context.Context) error {
	var b bytes.Buffer
	if err := m.shell(ctx, `test ! -e "$1" || cat "$1"`, nil, &b, path.Join(m.dir, experiment.SamplesFile)); err != nil {
		return fmt.Errorf("bringing samples out of the host: %w", err)
	}
	if b.Len() == 0 {
		return nil
	}
	return atomicfile.WriteFile(filepath.Join(m.out, experiment.SamplesFile), b.Bytes(), 0o644)
}

// takeDisk makes the root disk of a function the one that the image store of
// skep's private daemon has. The host has room for a few of them.
const takeDisk = `store=~/.cache/skep/experiment/images; rm -rf "$store"; mkdir -p "$store"
if [ -d "$1" ]; then cp -r --sparse=always "$1"/. "$store"; fi`

// measure has skep measure a piece, and brings out samples meanwhile and after. An
// exitCode is skep's.
func (m *measuring) measure(ctx context.Context, of piece) (err error) {
	if err := m.shell(ctx, takeDisk, nil, io.Discard, path.Join(imagesIn, "disks", of.function)); err != nil {
		return fmt.Errorf("copying the root disk of %s in the host: %w", of.function, err)
	}
	var saving sync.WaitGroup
	ended := make(chan struct{})
	saving.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(m.every):
				_ = m.save(ctx) // the last time it counts
			}
		}
	})
	out := &lockedWriter{w: io.MultiWriter(m.log, m.progress)}
	args := append([]string{m.program}, m.arguments(of, m.dir)...)
	// Nothing is at native speed there, neither replays nor the way of a call.
	args = append(args, "--kernel-dir", kernelsIn, "--firecracker", binIn+"/firecracker", "--max-replays", "0", "--keep-alive", "3s")
	code, err := m.host.run(ctx, remote.Command{Args: args}, nil, out, out)
	close(ended)
	saving.Wait()
	if err == nil && code != 0 {
		err = exitCode(code)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return errors.Join(err, m.save(last))
}
