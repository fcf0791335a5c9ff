package replay

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/workingset"
)

// guest is a child process that stands in for a VMM.
type guest struct {
	userfaultfd.Guest
	src  memory.Source
	cmd  *exec.Cmd
	enc  *gob.Encoder
	dec  *gob.Decoder
	held bool // the userfaultfd is still ours

	session memory.Session // that serves it, if any
}

// spawn starts a child and takes over its memory, unless it is to map that itself.
func spawn(ctx context.Context, o Options, policy string, src memory.Source, t *workingset.Trace) (*guest, error) {
	if mapped(policy) {
		ord := newOrder(o, src, t, "")
		ord.Huge = policy == MmapHuge
		g := &guest{src: src}
		if err := g.start(); err != nil {
			return nil, fmt.Errorf("starting a child: %w", err)
		}
		if err := g.tell(ord); err != nil {
			g.end()
			return nil, err
		}
		return g, nil
	}
	dir, err := os.MkdirTemp("", "skep-replay-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "uffd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	g := &guest{src: src}
	if err := g.start(); err != nil {
		return nil, fmt.Errorf("starting a child: %w", err)
	}
	if err := g.connect(ctx, l, newOrder(o, src, t, socket)); err != nil {
		g.end()
		return nil, err
	}
	return g, nil
}

func newOrder(o Options, src memory.Source, t *workingset.Trace, socket string) order {
	ord := order{MemorySize: src.Size, Socket: socket, MemoryFile: src.Path, Pages: t.Pages(), Touchers: o.Touchers}
	var last time.Duration
	for _, touch := range t.Touches {
		ord.Writes = append(ord.Writes, touch.Write)
		switch {
		case o.Work:
			ord.Work = append(ord.Work, max(touch.After-last, 0))
			last = touch.After
		case o.Pauses:
			ord.At = append(ord.At, touch.After)
		}
	}
	return ord
}

func (g *guest) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	g.cmd = exec.Command(exe)
	g.cmd.Env = append(os.Environ(), childEnv+"=1", "GODEBUG=asyncpreemptoff=1")
	g.cmd.Stderr = os.Stderr
	in, err := g.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	g.enc, g.dec = gob.NewEncoder(in), gob.NewDecoder(out)
	return g.cmd.Start()
}

func (g *guest) tell(o order) error {
	if err := g.enc.Encode(o); err != nil {
		return fmt.Errorf("telling the child what to do: %w", err)
	}
	return nil
}

func (g *guest) connect(ctx context.Context, l *net.UnixListener, o order) error {
	if err := g.tell(o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := l.AcceptUnix()
	if err != nil {
		return fmt.Errorf("waiting for the child: %w", err)
	}
	defer conn.Close()
	if g.Guest, err = userfaultfd.Receive(ctx, conn); err != nil {
		return err
	}
	g.held = true
	return nil
}

// end kills the child, then ends what served its memory; idempotent.
func (g *guest) end() {
	if g.cmd.ProcessState == nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
	}
	if g.held {
		g.held = false
		g.FD.Close()
		g.Gone.Close()
	}
	if g.session != nil {
		g.session.Close()
	}
}

// restore serves the child's memory under a policy, as node does a VMM's.
func (g *guest) restore(ctx context.Context, p memory.Policy, o Options) (Sample, error) {
	begin := time.Now()
	s, err := p.Open(ctx, g.src)
	if err != nil {
		return Sample{}, err
	}
	g.session = s
	s.Prefetch()
	waitUntil(begin.Add(o.Start))
	attach := time.Now()
	g.held = false
	if err := s.Attach(ctx, g.Guest); err != nil {
		return Sample{}, err
	}
	if err := s.Install(ctx); err != nil {
		return Sample{}, err
	}
	run := time.Now()
	res, err := g.touchAll()
	if err != nil {
		return Sample{}, err
	}
	return sample(o, s, res, run.Sub(begin), run.Sub(attach)), nil
}

// restoreMapped lets the child map the memory file, as a VMM does under the policy
// mmap: the kernel serves its faults.
func (g *guest) restoreMapped(o Options) (Sample, error) {
	begin := time.Now()
	waitUntil(begin.Add(o.Start))
	run := time.Now()
	res, err := g.touchAll()
	if err != nil {
		return Sample{}, err
	}
	s := Sample{Install: res.Mapped, Serve: res.Took, Total: run.Sub(begin) + res.Mapped + res.Took, Faults: res.Faults, Bytes: res.Read}
	return s.finish(o, res), nil
}

// touchAll lets the child touch its pages.
func (g *guest) touchAll() (res touched, err error) { return res, g.ask(&res) }

// verify lets it compare what it saw with the memory file.
func (g *guest) verify() error {
	var v verdict
	if err := g.ask(&v); err != nil {
		return err
	}
	if v.Err != "" {
		return errors.New(v.Err)
	}
	if v.Wrong > 0 {
		return fmt.Errorf("%d pages had wrong contents", v.Wrong)
	}
	return nil
}

// ask lets the child do its next step and waits for its report, or for the
// failure of what serves its memory.
func (g *guest) ask(report any) error {
	if s := g.session; s != nil {
		done, watched := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(watched)
			select {
			case <-s.Failed():
				_ = g.cmd.Process.Kill()
			case <-done:
			}
		}()
		defer func() { close(done); <-watched }()
	}
	err := g.enc.Encode(true)
	if err == nil {
		err = g.dec.Decode(report)
	}
	if g.session != nil && g.session.Err() != nil {
		return g.session.Err()
	}
	if err != nil {
		return fmt.Errorf("the child ended: %w", err)
	}
	return nil
}

func sample(o Options, s memory.Session, res touched, untilRun, install time.Duration) Sample {
	st := s.Stats()
	out := Sample{
		Fetch: st.FetchTime, Install: install, Copying: st.InstallTime, Serve: res.Took, Total: untilRun + res.Took,
		Faults: st.Faults, Pages: st.Prefetched, Bytes: st.BytesRead, Note: st.Note,
	}
	return out.finish(o, res)
}

// finish adds what follows from the rest.
func (s Sample) finish(o Options, res touched) Sample {
	s.Touch = median(res.Touches)
	per := s.Fetch
	if per == 0 {
		per = s.Serve
	}
	if per > 0 {
		s.MBps = float64(s.Bytes) / 1e6 / per.Seconds()
	}
	if o.Raw {
		for _, d := range res.Touches {
			s.Touches = append(s.Touches, d.Nanoseconds())
		}
	}
	return s
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
