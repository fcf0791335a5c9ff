package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/workingset"
)

// recorded is a function as native replays it. It is kept on disk, since a boot and
// four starts under emulation are most of what the experiment takes: a directory
// with the memory file, a trace of each input as it was recorded, and, as a
// snapshot has them, trace and working set of the first input at native speed.
type recorded struct {
	SnapshotID string
	Size       int64
	VMM        time.Duration             // the median start of a VMM: queue, slot, spawn and load
	Ready      time.Duration             // the same without spawn
	Work       [Inputs + 1]time.Duration // the function's own, with each input

	source memory.Source
	traces [Inputs + 1]*workingset.Trace
}

// recordedFile says what was recorded, in its directory.
const recordedFile = "recorded.json"

// touched is the trace of an input at native speed.
func (r *recorded) touched(input int) *workingset.Trace {
	return atNativeSpeed(r.traces[input], r.Work[input], 0)
}

// recorded is a function with all its inputs, recorded in real microVMs unless that
// was done before.
func (l *Lab) recorded(ctx context.Context, subject string) (*recorded, error) {
	if r := l.native[subject]; r != nil {
		return r, nil
	}
	dir, err := l.Recordings(ctx, subject)
	if err != nil {
		return nil, err
	}
	r, err := loadRecorded(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = l.makeRecording(ctx, subject, dir); err == nil {
			r, err = loadRecorded(dir)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", subject, err)
	}
	l.native[subject] = r
	return r, nil
}

func loadRecorded(dir string) (*recorded, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordedFile))
	if err != nil {
		return nil, err
	}
	r := &recorded{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w; remove %s to record anew", recordedFile, err, dir)
	}
	r.source = memory.Source{SnapshotID: r.SnapshotID, Path: filepath.Join(dir, "memory"), Size: r.Size, Dir: dir}
	of := workingset.Of{SnapshotID: r.SnapshotID, MemorySize: r.Size}
	for input := 1; input <= Inputs; input++ {
		if r.traces[input], err = workingset.LoadTrace(traceDir(dir, input), of); err != nil {
			return nil, fmt.Errorf("the trace of input %d: %w; remove %s to record anew", input, err, dir)
		}
	}
	return r, nil
}

func traceDir(dir string, input int) string { return filepath.Join(dir, "input-"+itoa(input)) }

// makeRecording makes the directory of a function.
func (l *Lab) makeRecording(ctx context.Context, subject, dir string) error {
	name, err := l.Function(ctx, subject, "", nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	staged, err := atomicfile.Stage(filepath.Dir(dir), filepath.Base(dir))
	if err != nil {
		return err
	}
	defer staged.Close()
	r := &recorded{}
	var vmm, ready []float64
	for input := Inputs; input > 0; input-- { // the first input last: the snapshot keeps its trace
		s, t, err := l.Trace(ctx, name, input)
		if err != nil {
			return err
		}
		p := s.Record.Phases
		vmm, ready = append(vmm, float64(p.Queue+p.Slot+p.Spawn+p.Load)), append(ready, float64(p.Queue+p.Slot+p.Load))
		r.traces[input] = t
		if err := saveTrace(traceDir(staged.Dir, input), t); err != nil {
			return err
		}
	}
	r.VMM, r.Ready = time.Duration(stat.Median(vmm)), time.Duration(stat.Median(ready))
	if err := l.Quiet(ctx, name); err != nil {
		return err
	}
	img, err := l.Image(name)
	if err != nil {
		return err
	}
	if r.Work, err = ownWork(ctx, img, l.Inputs()); err != nil {
		return fmt.Errorf("measuring its own work: %w", err)
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return err
	}
	r.SnapshotID, r.Size = src.SnapshotID, src.Size
	if err := r.save(ctx, staged.Dir, src); err != nil {
		return err
	}
	l.log.Info("recorded", "function", name, "vmm", r.VMM, "own work", r.Work[1], "pages", len(r.traces[1].Touches))
	return staged.Publish(dir)
}

func saveTrace(dir string, t *workingset.Trace) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return workingset.SaveTrace(dir, t)
}

// save fills the directory with the rest. The memory file is the snapshot's, which
// can go: nobody writes to it.
func (r *recorded) save(ctx context.Context, dir string, src memory.Source) error {
	if err := os.Link(src.Path, filepath.Join(dir, "memory")); err != nil {
		return err
	}
	first := atNativeSpeed(r.traces[1], r.Work[1], recordedFault)
	if err := workingset.SaveTrace(dir, first); err != nil {
		return err
	}
	src.Path, src.Dir = filepath.Join(dir, "memory"), dir
	if err := memory.EnsureSet(ctx, src, first); err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, recordedFile), append(b, '\n'), 0o600)
}
