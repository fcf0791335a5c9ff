package experiment

import (
	"context"
	"fmt"
	"os/exec"
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
func (l *Lab) replayAtOnce(ctx context.Context, p Point, policy string) ([]Sample, error) {
	name, err := l.Function(ctx, p.Function, "", nil)
	if err != nil {
		return nil, err
	}
	if err := l.Train(ctx, name, 1); err != nil {
		return nil, err
	}
	sources, err := l.copiesOf(ctx, name, p.N)
	if err != nil {
		return nil, fmt.Errorf("copying a snapshot: %w", err)
	}
	rep, err := replay.Run(ctx, replay.Options{
		Sources: sources, Table: l.policies(), Policies: []string{policy}, Runs: 1, Instances: p.N, Cold: l.Set.Cold != ColdNone, NoFloors: true,
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

// copiesOf are as many copies of a function's snapshot. They are kept until Remove:
// of one function, which is all that is replayed at once.
func (l *Lab) copiesOf(ctx context.Context, name string, n int) ([]memory.Source, error) {
	src, err := l.Source(ctx, name)
	if err != nil {
		return nil, err
	}
	for len(l.copies) < n {
		dir, err := l.scratch(src)
		if err != nil {
			return nil, err
		}
		to, err := copySnapshot(ctx, src, dir)
		if err != nil {
			return nil, err
		}
		l.copies = append(l.copies, to)
	}
	return l.copies[:n], nil
}

// copySnapshot copies of a snapshot what a replay reads: trace, working set, and
// all of the memory, since the kernel reads around the pages that a mapping faults
// on. The copy has holes where it has, and shares no block with it.
func copySnapshot(ctx context.Context, src memory.Source, dir string) (memory.Source, error) {
	to := memory.Source{SnapshotID: src.SnapshotID, Path: filepath.Join(dir, "memory"), Size: src.Size, Dir: dir}
	for _, from := range []string{src.Path, filepath.Join(src.Dir, workingset.TraceFile), filepath.Join(src.Dir, workingset.SetFile)} {
		cmd := exec.CommandContext(ctx, "cp", "--sparse=auto", "--reflink=never", from, filepath.Join(dir, filepath.Base(from)))
		if out, err := cmd.CombinedOutput(); err != nil {
			return to, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return to, nil
}
