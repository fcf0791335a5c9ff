package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/workingset"
)

// Inspect says what is known of a snapshot's memory. Files that a restore would
// refuse are told with the reason; nothing is changed. With pages it also says it
// page by page.
func Inspect(src Source, pages bool) api.SnapshotMemory {
	in := inspection{src: src, out: api.SnapshotMemory{Snapshot: src.SnapshotID, MemoryBytes: src.Size}}
	back, err := openBacking(context.Background(), src, &holeMaps{}, make(chan struct{}, 1))
	if err != nil {
		in.out.Problem = err.Error()
	} else {
		defer back.close()
		in.back = back
		in.out.DataPages = back.data.count()
	}
	in.readSet()
	in.readTrace()
	in.readLearned()
	in.readTrial()
	if pages {
		in.out.Map = in.pageMap()
	}
	return in.out
}

// inspection is one call of Inspect under way. What could not be read is nil.
type inspection struct {
	src  Source
	back *backing
	out  api.SnapshotMemory

	touched, prefetched, zero, missed, wasted bitmap
}

func (in *inspection) bitmap() bitmap { return newBitmap(int(in.src.Size / pageSize)) }

// file describes a file of the snapshot, and what reading it came to.
func (in *inspection) file(name string, err error) api.PageFile {
	out := api.PageFile{}
	if st, err := os.Stat(filepath.Join(in.src.Dir, name)); err == nil {
		out.Recorded, out.FileBytes = st.ModTime().UTC(), st.Size()
	}
	out.Problem = problem(err)
	return out
}

// problem is what is wrong with a file; one that is not there is not wrong.
func problem(err error) string {
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return ""
	}
	return err.Error()
}

func (in *inspection) readSet() {
	set, err := verifiedSet(in.src)
	in.out.WorkingSet = in.file(workingset.SetFile, err)
	if err != nil {
		return
	}
	sum := set.Summary()
	in.out.WorkingSet.Summary = &sum
	in.prefetched, in.zero = in.bitmap(), in.bitmap()
	for _, r := range set.Runs {
		in.prefetched.setRange(r.First, r.End())
		if r.Zero {
			in.zero.setRange(r.First, r.End())
		}
	}
}

func (in *inspection) readTrial() {
	trial := inspection{src: in.src.trial()}
	set, err := verifiedSet(trial.src)
	if err == nil {
		_, err = workingset.LoadTrace(trial.src.Dir, trial.src.of())
	}
	in.out.Trial = trial.file(workingset.SetFile, err)
	if err == nil {
		sum := set.Summary()
		in.out.Trial.Summary = &sum
	}
}

// verifiedSet reads a working set whole, as a restore does.
func verifiedSet(src Source) (*workingset.Set, error) {
	set, f, err := workingset.LoadSet(src.Dir, src.of())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, workingset.BlockSize)
	for off := int64(0); off < set.ContentBytes; off += workingset.BlockSize {
		part := buf[:min(set.ContentBytes-off, workingset.BlockSize)]
		if _, err := f.ReadAt(part, set.ContentOffset+off); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if err := set.Verify(part, off); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return set, nil
}

func (in *inspection) readTrace() {
	t, err := workingset.LoadTrace(in.src.Dir, in.src.of())
	var zero bitmap
	if err == nil {
		zero, err = in.zerosOf(t)
	}
	in.out.Trace = in.file(workingset.TraceFile, err)
	if err != nil {
		return
	}
	sum := t.Summary(zero.has)
	in.out.Trace.Summary = &sum
	in.touched = in.bitmap()
	for _, touch := range t.Touches {
		in.touched.set(touch.Page)
	}
}

// zerosOf finds the pages of a trace that hold zeros; the working set knows of
// most, the memory file of the others.
func (in *inspection) zerosOf(t *workingset.Trace) (bitmap, error) {
	var unknown []uint32
	for _, page := range t.Pages() {
		if in.prefetched == nil || !in.prefetched.has(page) {
			unknown = append(unknown, page)
		}
	}
	if len(unknown) > 0 && in.back == nil {
		return nil, errors.New("the memory file that it is about cannot be read")
	}
	zeros := in.bitmap()
	if len(unknown) > 0 {
		var err error
		if zeros, err = in.back.zeroPages(context.Background(), unknown); err != nil {
			return nil, err
		}
	}
	if in.zero != nil {
		zeros.add(in.zero)
	}
	return zeros, nil
}

// readLearned tells pages that were missed from those that were idle. Without
// learning, what was touched and is not in the working set was missed.
func (in *inspection) readLearned() {
	l, err := workingset.LoadLearned(in.src.Dir, in.src.of())
	in.out.Learned = api.LearnedMemory{Problem: problem(err), Missed: -1, Wasted: -1}
	if in.prefetched == nil {
		return
	}
	in.missed = in.bitmap()
	if in.touched != nil {
		in.missed.add(in.touched)
	}
	if err == nil {
		in.wasted = in.bitmap()
		for _, e := range l.Pages {
			if e.Missed != 0 {
				in.missed.set(e.Page)
			}
			if e.Idle != 0 {
				in.wasted.set(e.Page)
			}
		}
		in.wasted.keep(in.prefetched)
		in.out.Learned.Restores, in.out.Learned.Without = int64(l.Restores), int64(l.Without)
		in.out.Learned.Wasted = in.wasted.count()
	}
	in.missed.remove(in.prefetched)
	in.out.Learned.Missed = in.missed.count()
}

func (in *inspection) pageMap() *api.PageMap {
	m := &api.PageMap{
		Touched: in.touched.runs(), Prefetched: in.prefetched.runs(), Zero: in.zero.runs(),
		Missed: in.missed.runs(), Wasted: in.wasted.runs(),
	}
	if in.back != nil {
		m.Data = in.back.data.runs()
	}
	return m
}
