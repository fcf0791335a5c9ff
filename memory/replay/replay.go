package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

// Options of Run. Only Sources is needed.
type Options struct {
	// Sources are the snapshots; each must have a trace. Instance i replays
	// Sources[i mod len].
	Sources []memory.Source
	// Touched are traces of what is touched in place of the sources' own, as with
	// an input that was not recorded; nil: their own.
	Touched   []*workingset.Trace
	Table     *memory.Policies // default: a table of its own
	Policies  []string         // default: all, and MmapHuge
	Runs      int              // of each policy, in turns; default 10
	Touchers  int              // threads that touch; default 1
	Instances int              // at once; default 1
	Pauses    bool             // touch when the trace says, not as fast as possible
	// Work spends, before each touch, as much processor time as the trace says has
	// passed since the one before it, however late that was: a function's own work.
	Work     bool
	Cold     bool // take the files out of the page cache before each run
	Raw      bool // keep how long each touch took
	NoFloors bool // measure the policies alone
	// Start is how long a VMM is thought to take from the request until it hands
	// over its memory; a policy may use it. It counts towards Total.
	Start time.Duration
	// Progress is told of each sample as it comes.
	Progress func(Sample)
}

// Sample is one instance of one run. Times are nanoseconds on the wire.
type Sample struct {
	Policy   string        `json:"policy"`
	Run      int           `json:"run"`
	Instance int           `json:"instance"`
	Fetch    time.Duration `json:"fetch_ns"`   // reading the working set
	Install  time.Duration `json:"install_ns"` // from memory handed over until the vCPUs would run
	Copying  time.Duration `json:"copying_ns"` // spent installing, overlapped or not
	Serve    time.Duration `json:"serve_ns"`   // first touch until last touch
	Total    time.Duration `json:"total_ns"`   // request until last touch
	Faults   int64         `json:"faults"`
	Pages    int64         `json:"prefetched_pages"`
	Bytes    int64         `json:"bytes_read"`
	MBps     float64       `json:"mb_per_s"`        // bytes read per second of Fetch (of Serve, where nothing was fetched)
	Touch    time.Duration `json:"touch_median_ns"` // one touch, faults and others
	Note     string        `json:"note,omitempty"`
	Touches  []int64       `json:"touches_ns,omitempty"`
}

// Host describes the machine that was measured on.
type Host struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Go     string `json:"go"`
}

// Report is the result of Run.
type Report struct {
	Time      time.Time       `json:"time"`
	Host      Host            `json:"host"`
	Trace     api.PageSummary `json:"trace"`
	Touchers  int             `json:"touchers"`
	Instances int             `json:"instances"`
	Cold      bool            `json:"cold"`
	Pauses    bool            `json:"pauses"`
	Work      bool            `json:"work,omitempty"`
	Samples   []Sample        `json:"samples"`
	Floors    []Floor         `json:"floors,omitempty"`
}

func (o Options) withDefaults() Options {
	if o.Runs <= 0 {
		o.Runs = 10
	}
	o.Touchers, o.Instances = max(o.Touchers, 1), max(o.Instances, 1)
	if len(o.Policies) == 0 && o.Table != nil {
		for _, name := range o.Table.Names() {
			if o.Policies = append(o.Policies, name); name == "mmap" {
				o.Policies = append(o.Policies, MmapHuge)
			}
		}
	}
	return o
}

// MmapHuge is the policy mmap with the mapping advised to be of huge pages, which
// makes the kernel read more around each fault. QEMU would map memory so and is kept
// from it; Firecracker
// does not.
const MmapHuge = "mmap-huge"

// mapped says that the child maps the memory file itself under that policy.
func mapped(policy string) bool { return policy == "mmap" || policy == MmapHuge }

// Run replays and measures. A page that reached a child with wrong contents is
// an error, not a figure.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Table == nil {
		o.Table = memory.New(memory.Options{})
		defer o.Table.Close()
	}
	o = o.withDefaults()
	traces, err := loadTraces(ctx, o.Sources)
	if err != nil {
		return Report{}, err
	}
	if o.Touched != nil {
		if len(o.Touched) != len(o.Sources) {
			return Report{}, fmt.Errorf("%d traces to touch and %d snapshots", len(o.Touched), len(o.Sources))
		}
		traces = o.Touched
	}
	rep := Report{
		Time: time.Now(), Host: host(), Trace: traces[0].Summary(nil),
		Touchers: o.Touchers, Instances: o.Instances, Cold: o.Cold, Pauses: o.Pauses, Work: o.Work,
	}
	for run := range o.Runs {
		if !o.NoFloors {
			floors, err := measureFloors(ctx, o, traces[0], run)
			if err != nil {
				return rep, fmt.Errorf("measuring the floors: %w", err)
			}
			rep.Floors = append(rep.Floors, floors...)
		}
		for _, name := range o.Policies {
			samples, err := runOnce(ctx, o, traces, name, run)
			if err != nil {
				return rep, fmt.Errorf("replaying under %s: %w", name, err)
			}
			rep.Samples = append(rep.Samples, samples...)
		}
	}
	return rep, nil
}

func host() Host {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return Host{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Go: runtime.Version()}
}

// loadTraces reads the traces and makes sure that the working sets are there.
func loadTraces(ctx context.Context, sources []memory.Source) ([]*workingset.Trace, error) {
	if len(sources) == 0 {
		return nil, errors.New("no snapshot to replay")
	}
	var traces []*workingset.Trace
	for _, src := range sources {
		of := workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size}
		t, err := workingset.LoadTrace(src.Dir, of)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s has no usable trace (one restore under lazy or reap records it): %w", src.SnapshotID, err)
		}
		if err := memory.EnsureSet(ctx, src, t); err != nil {
			return nil, err
		}
		traces = append(traces, t)
	}
	return traces, nil
}

// runOnce is one run of one policy: all instances at once.
func runOnce(ctx context.Context, o Options, traces []*workingset.Trace, policy string, run int) ([]Sample, error) {
	var p memory.Policy
	if !mapped(policy) {
		var err error
		if p, err = o.Table.Lookup(policy); err != nil {
			return nil, err
		}
	}
	guests := make([]*guest, o.Instances)
	defer func() {
		for _, g := range guests {
			if g != nil {
				g.end()
			}
		}
	}()
	for i := range guests {
		n := i % len(o.Sources)
		var err error
		if guests[i], err = spawn(ctx, o, policy, o.Sources[n], traces[n]); err != nil {
			return nil, err
		}
	}
	if o.Cold {
		if err := dropCaches(o.Sources); err != nil {
			return nil, err
		}
	}
	samples := make([]Sample, o.Instances)
	var group errgroup.Group
	for i, g := range guests {
		group.Go(func() (err error) {
			if p == nil {
				samples[i], err = g.restoreMapped(o)
			} else {
				samples[i], err = g.restore(ctx, p, o)
			}
			samples[i].Policy, samples[i].Run, samples[i].Instance = policy, run, i
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, g := range guests {
		if err := g.verify(); err != nil {
			return nil, fmt.Errorf("instance %d: %w", i, err)
		}
	}
	if o.Progress != nil {
		for _, s := range samples {
			o.Progress(s)
		}
	}
	return samples, nil
}

// dropCaches takes the snapshots' files out of the page cache.
func dropCaches(sources []memory.Source) error {
	for _, src := range sources {
		for _, path := range []string{src.Path, src.Dir + "/" + workingset.SetFile, src.Dir + "/" + workingset.TraceFile} {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			err = unix.Fdatasync(int(f.Fd())) // dirty pages would stay
			if err == nil {
				err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			}
			f.Close()
			if err != nil {
				return fmt.Errorf("taking %s out of the page cache: %w", path, err)
			}
		}
	}
	return nil
}
