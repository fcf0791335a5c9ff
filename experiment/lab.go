package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/link"
	"github.com/skep-dev/skep/load/trace"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

// Host is the daemon that experiments run on; cmd/skep has one of its own for them.
type Host interface {
	Client() *api.Client
	// Deploy makes one of skep's functions a function named f.Name.
	Deploy(ctx context.Context, builtin string, f api.Function) error
	// Files are those that a restore of the function reads, root disk included.
	Files(ctx context.Context, function string) ([]string, error)
	// Source is the memory of its newest snapshot.
	Source(ctx context.Context, function string) (memory.Source, error)
	// Recordings is the directory for what is recorded of one of skep's functions, of
	// its image as it is now under this VMM. Whatever is there stays.
	Recordings(ctx context.Context, builtin string) (string, error)
	// VMM is the path of the VMM's program, "" if it is not known.
	VMM() string
	// Image is the image of a function.
	Image(function string) (image.Image, error)
	// Inputs is the address of the server that functions fetch their inputs from,
	// as this machine sees it; "" if there is none.
	Inputs() string
}

// Lab is a host with functions on it: what experiments measure with.
type Lab struct {
	Host
	Set      Settings
	Knative  Knative // nil without a cluster
	Nodes    Nodes   // nil without an object store
	log      *slog.Logger
	deployed map[string]bool // names
	trained  map[string]int  // name -> input whose trace the snapshot has
	served   map[string]bool // services of Knative

	memory map[string]int64             // name -> bytes of guest memory
	first  map[string]*workingset.Trace // name -> trace of its first input

	native  map[string]*recorded // subject -> as native replays it
	copies  []memory.Source      // of one snapshot, for replays at once
	dirs    []string             // that Remove removes
	serving *memory.Policies     // of replays; nil until the first

	large    *trace.Trace // that is simulated; nil until the first
	measured *Store       // what there is already; nil before Run

	pushed map[string]api.PushedSnapshot // name -> its snapshot in the object store
	speeds map[link.Link]*LinkSpeed
}

// NewLab returns a lab without functions.
func NewLab(h Host, set Settings, log *slog.Logger) *Lab {
	return &Lab{Host: h, Set: set, log: log, deployed: map[string]bool{}, trained: map[string]int{}, served: map[string]bool{}, memory: map[string]int64{}, first: map[string]*workingset.Trace{},
		native: map[string]*recorded{}, pushed: map[string]api.PushedSnapshot{}, speeds: map[link.Link]*LinkSpeed{}}
}

// idle is how long an instance of a measured function stays after a response, if
// it was not started for one call alone and the settings do not say: as short as
// lets a warm call follow.
const idle = 400 * time.Millisecond

// Function deploys a subject, once, and returns its name as a function. A suffix
// makes another of the same subject, with its own snapshot; edit, which may be
// nil, changes its settings.
func (l *Lab) Function(ctx context.Context, subject, suffix string, edit func(*api.Function)) (string, error) {
	name := nameOf(subject) + suffix
	if l.deployed[name] {
		return name, nil
	}
	f, err := l.settings(subject, name)
	if err != nil {
		return "", err
	}
	if edit != nil {
		edit(&f)
	}
	start := time.Now()
	if err := l.Deploy(ctx, subject, f); err != nil {
		return "", fmt.Errorf("deploying %s: %w", subject, err)
	}
	l.log.Info("deployed", "function", name, "took", time.Since(start).Round(100*time.Millisecond))
	l.deployed[name], l.memory[name] = true, int64(f.MemoryMiB)<<20
	return name, nil
}

// settings are those of a subject as a function of that name.
func (l *Lab) settings(subject, name string) (api.Function, error) {
	f, err := functions.Settings(subject)
	if err != nil {
		return f, err
	}
	f.Name, f.VCPUs, f.MaxInstances = name, 1, 64
	f.Timeout, f.ReadyTimeout = api.Duration(10*time.Minute), api.Duration(10*time.Minute)
	f.KeepAlive = api.Duration(cmp.Or(l.Set.KeepAlive, idle))
	if f.MemoryMiB == 0 {
		f.MemoryMiB = 256
	}
	return f, nil
}

// Remove takes all functions away, and what was made of them.
func (l *Lab) Remove(ctx context.Context) error {
	var errs []error
	if l.serving != nil {
		l.serving.Close()
		l.serving = nil
	}
	for _, dir := range l.dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	l.dirs, l.copies = nil, nil
	clear(l.native)
	for name := range l.deployed {
		errs = append(errs, l.Client().RemoveFunction(ctx, name))
		delete(l.deployed, name)
	}
	if len(l.served) > 0 {
		errs = append(errs, l.Knative.Remove(ctx))
		clear(l.served)
	}
	return errors.Join(errs...)
}

// throughKnative asks a service that has no pod. It is made the first time.
func (l *Lab) throughKnative(ctx context.Context, s Service, input int) (Sample, error) {
	if l.Knative == nil {
		return Sample{}, errors.New("no cluster with Knative")
	}
	if !l.served[s.Name] {
		l.served[s.Name] = false // but to be removed
		start := time.Now()
		if err := l.Knative.Serve(ctx, s); err != nil {
			return Sample{}, fmt.Errorf("making service %s: %w", s.Name, err)
		}
		l.log.Info("served", "service", s.Name, "took", time.Since(start).Round(100*time.Millisecond))
		l.served[s.Name] = true
	}
	path, cache, err := l.Knative.Ask(ctx, s, input, l.Set.Cold)
	return Sample{Time: time.Now().UTC(), Stack: &path, Cache: cache}, err
}

// policies are those that replays are served by: one table for all, as a daemon
// has, so that its buffers are there and what it knows of files is known. What is
// measured does not change them.
func (l *Lab) policies() *memory.Policies {
	if l.serving == nil {
		l.serving = memory.New(memory.Options{Frozen: true})
	}
	return l.serving
}

// scratch is a new directory beside the snapshots, until Remove: temporary files
// are often in memory.
func (l *Lab) scratch(src memory.Source) (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(filepath.Dir(filepath.Dir(src.Path))), "replay-")
	if err == nil {
		l.dirs = append(l.dirs, dir)
	}
	return dir, err
}

// invocation is how a function is called.
type invocation struct {
	start  api.StartKind
	policy string
	input  int
	path   string

	answered func() // called when the answer is here, before its record is; may be nil
}

// invoke calls a function and returns the record that it left.
func (l *Lab) invoke(ctx context.Context, name string, i invocation) (Sample, error) {
	s := Sample{Time: time.Now().UTC()}
	path := i.path
	if path == "" {
		path = "/"
	}
	if i.input > 0 {
		path = fmt.Sprintf("%s?input=%d", path, i.input)
	}
	resp, err := l.Client().Invoke(ctx, api.InvokeRequest{Function: name, Path: path, Start: i.start, Policy: i.policy})
	if err != nil {
		return s, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return s, fmt.Errorf("reading the answer of %s: %w", name, err)
	}
	if i.answered != nil {
		i.answered()
	}
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("%s answered %s: %.300s", name, resp.Status, body)
	}
	rec, err := l.record(ctx, resp.Header.Get(api.HeaderInvocation))
	if err != nil {
		return s, err
	}
	if i.start != "" && rec.Start != i.start {
		return s, fmt.Errorf("%s: asked for a %s start, got %s", name, i.start, rec.Start)
	}
	s.Record = &rec
	return s, nil
}

// record waits for an invocation's record, which is stored after the last byte
// of the answer has left.
func (l *Lab) record(ctx context.Context, id string) (api.Invocation, error) {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		rec, err := l.Client().Invocation(ctx, id)
		var e *api.Error
		if err == nil || !errors.As(err, &e) || e.Status != http.StatusNotFound {
			return rec, err
		}
		if err := sleep(ctx, wait); err != nil {
			return rec, fmt.Errorf("invocation %s left no record: %w", id, err)
		}
	}
}

// Quiet waits until the function has no instance: one holds pages of the
// snapshot in the page cache.
func (l *Lab) Quiet(ctx context.Context, name string) error {
	for {
		list, err := l.Client().Instances(ctx, name)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// Chill waits until none of the functions runs and drops what their starts read
// from the page cache, as the settings say.
func (l *Lab) Chill(ctx context.Context, names ...string) (*Cache, error) {
	var files []string
	for _, name := range names {
		if err := l.Quiet(ctx, name); err != nil {
			return nil, err
		}
		more, err := l.Files(ctx, name)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	if l.Set.Cold == ColdAll && l.VMM() != "" {
		files = append(files, l.VMM())
	}
	if l.Set.Cold == ColdNone {
		return &Cache{Dropped: ColdNone, Before: -1, Left: -1}, nil
	}
	c, err := DropCache(files)
	c.Dropped = l.Set.Cold
	return &c, err
}

// untrained are the policies that use no trace.
var untrained = []string{"mmap", "lazy", "resident"}

// Cold makes a cold start under a policy and returns its sample. The function
// has a trace of its first input by then.
func (l *Lab) Cold(ctx context.Context, name, policy string, input int) (Sample, error) {
	if !slices.Contains(untrained, policy) {
		if err := l.Train(ctx, name, 1); err != nil {
			return Sample{}, err
		}
	}
	return l.restore(ctx, name, policy, input)
}

func (l *Lab) restore(ctx context.Context, name, policy string, input int) (Sample, error) {
	cache, err := l.Chill(ctx, name)
	if err != nil {
		return Sample{}, err
	}
	s, err := l.invoke(ctx, name, invocation{start: api.StartRestore, policy: policy, input: input})
	s.Cache = cache
	return s, err
}

// Warm calls an instance that is there, made so by a call that does not count.
func (l *Lab) Warm(ctx context.Context, name string, input int) (Sample, error) {
	if _, err := l.invoke(ctx, name, invocation{input: input}); err != nil {
		return Sample{}, err
	}
	return l.invoke(ctx, name, invocation{start: api.StartWarm, input: input})
}

// Train makes sure that the snapshot has the trace of that input.
func (l *Lab) Train(ctx context.Context, name string, input int) error {
	if l.trained[name] == input {
		return nil
	}
	_, _, err := l.Trace(ctx, name, input)
	return err
}

// Trace forgets what is recorded of a snapshot and records it anew with an
// input: a cold start under reap, whose pages are all served one by one.
func (l *Lab) Trace(ctx context.Context, name string, input int) (Sample, *workingset.Trace, error) {
	if err := l.Quiet(ctx, name); err != nil {
		return Sample{}, nil, err
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return Sample{}, nil, err
	}
	for _, file := range []string{workingset.SetFile, workingset.TraceFile, workingset.LearnedFile} {
		if err := os.Remove(filepath.Join(src.Dir, file)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Sample{}, nil, fmt.Errorf("forgetting what %s touched: %w", name, err)
		}
	}
	delete(l.trained, name)
	s, err := l.restore(ctx, name, "reap", input)
	if err != nil {
		return s, nil, err
	}
	t, err := l.awaitTrace(ctx, src)
	if err != nil {
		return s, nil, fmt.Errorf("recording %s: %w", name, err)
	}
	l.trained[name] = input
	return s, t, nil
}

// First is the trace of a function's first input, recorded once.
func (l *Lab) First(ctx context.Context, name string) (*workingset.Trace, error) {
	if t := l.first[name]; t != nil {
		return t, nil
	}
	_, t, err := l.Trace(ctx, name, 1)
	if err == nil {
		l.first[name] = t
	}
	return t, err
}

// awaitTrace waits for the recording, which is saved after the response.
func (l *Lab) awaitTrace(ctx context.Context, src memory.Source) (*workingset.Trace, error) {
	of := workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		// The working set is written after the trace.
		_, f, err := workingset.LoadSet(src.Dir, of)
		if err == nil {
			f.Close()
			return workingset.LoadTrace(src.Dir, of)
		}
		if serr := sleep(ctx, 10*time.Millisecond); serr != nil {
			return nil, errors.Join(serr, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
