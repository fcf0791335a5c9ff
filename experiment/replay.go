package experiment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
	"github.com/skep-dev/skep/memory/workingset"
)

// replaySuffix marks the variants that are replayed.
const replaySuffix = " (replayed)"

// replayed returns the policy of a variant, and whether it is replayed.
func replayed(variant string) (policy string, ok bool) {
	return strings.CutSuffix(variant, replaySuffix)
}

// replayAtOnce replays the trace of a function N times at once, each from a copy
// of the snapshot of its own, without VMs.
func (l *Lab) replayAtOnce(ctx context.Context, p Point, policy string) (_ []Sample, err error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	src, err := l.Source(ctx, name)
	if err != nil {
		return nil, err
	}
	// Beside the snapshots: temporary files are often in memory.
	dir, err := os.MkdirTemp(filepath.Dir(filepath.Dir(filepath.Dir(src.Path))), "replay-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sources := make([]memory.Source, p.N)
	for i := range sources {
		if sources[i], err = copyTouched(src, filepath.Join(dir, itoa(i))); err != nil {
			return nil, fmt.Errorf("copying a snapshot: %w", err)
		}
	}
	rep, err := replay.Run(ctx, replay.Options{
		Sources: sources, Policies: []string{policy}, Runs: 1, Instances: p.N, Cold: l.Set.Cold != ColdNone, NoFloors: true,
	})
	if err != nil {
		return nil, err
	}
	samples := make([]Sample, len(rep.Samples))
	for i := range rep.Samples {
		samples[i] = Sample{Time: time.Now().UTC(), Replayed: true, Replay: &rep.Samples[i]}
	}
	return samples, nil
}

// copyTouched copies of a snapshot what a replay reads: trace, working set, and
// the pages of the trace.
func copyTouched(src memory.Source, dir string) (memory.Source, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return src, err
	}
	t, err := workingset.LoadTrace(src.Dir, workingset.Of{SnapshotID: src.SnapshotID, MemorySize: src.Size})
	if err != nil {
		return src, err
	}
	to := memory.Source{SnapshotID: src.SnapshotID, Path: filepath.Join(dir, "memory"), Size: src.Size, Dir: dir}
	for _, name := range []string{workingset.TraceFile, workingset.SetFile} {
		b, err := os.ReadFile(filepath.Join(src.Dir, name))
		if err != nil {
			return src, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return src, err
		}
	}
	in, err := os.Open(src.Path)
	if err != nil {
		return src, err
	}
	defer in.Close()
	out, err := os.Create(to.Path)
	if err != nil {
		return src, err
	}
	defer out.Close()
	if err := out.Truncate(src.Size); err != nil {
		return src, err
	}
	for _, r := range workingset.Runs(t.Touches, func(uint32) bool { return false }, 0) {
		at := int64(r.First) * workingset.PageSize
		if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, int64(r.Pages)*workingset.PageSize)); err != nil {
			return src, err
		}
	}
	return to, out.Sync()
}
