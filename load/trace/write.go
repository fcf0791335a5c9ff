package trace

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// The files that Write makes, named as invitro's are.
const (
	InvocationsFile = "invocations.csv"
	DurationsFile   = "durations.csv"
	MemoryFile      = "memory.csv"
)

// Write writes the trace to a directory, in the format of Azure's trace of 2019, which
// other loaders read, too. Of single invocations only how many there were in each minute
// is kept.
func (t *Trace) Write(dir string) error {
	for name, write := range map[string]func(*bufio.Writer){InvocationsFile: t.writeInvocations, DurationsFile: t.writeDurations, MemoryFile: t.writeMemory} {
		err := atomicfile.Write(filepath.Join(dir, name), 0o644, func(w io.Writer) error {
			b := bufio.NewWriterSize(w, 1<<20)
			write(b)
			return b.Flush()
		})
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func (f *Function) writeName(w *bufio.Writer) {
	w.WriteString(f.Owner + "," + f.App + "," + f.Name)
}

func (t *Trace) writeInvocations(w *bufio.Writer) {
	w.WriteString("HashOwner,HashApp,HashFunction,Trigger")
	for m := range t.minutes {
		w.WriteString("," + strconv.Itoa(m+1))
	}
	// The file has a row for each function, the trace a column for each minute.
	rows := make([][]byte, len(t.Functions))
	next := make([]int, len(t.Functions))
	zeros := func(f, until int) {
		for ; next[f] < until; next[f]++ {
			rows[f] = append(rows[f], ",0"...)
		}
	}
	for m := range t.minutes {
		t.Counts(m, func(f int, calls uint64) {
			zeros(f, m)
			rows[f] = strconv.AppendUint(append(rows[f], ','), calls, 10)
			next[f] = m + 1
		})
	}
	for i := range t.Functions {
		zeros(i, len(t.minutes))
		w.WriteString("\n")
		t.Functions[i].writeName(w)
		w.WriteString("," + t.Functions[i].Trigger)
		w.Write(rows[i])
		rows[i] = nil
	}
	w.WriteString("\n")
}

func (t *Trace) writeDurations(w *bufio.Writer) {
	w.WriteString("HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")
	for _, p := range Percents {
		fmt.Fprintf(w, ",percentile_Average_%d", p)
	}
	w.WriteString("\n")
	for i := range t.Functions {
		f := &t.Functions[i]
		f.writeName(w)
		q := f.Duration
		fmt.Fprintf(w, ",%g,%d,%g,%g", f.Duration.Mean()*1000, f.Calls, q[0]*1000, q[6]*1000)
		for _, s := range q {
			fmt.Fprintf(w, ",%g", s*1000)
		}
		w.WriteString("\n")
	}
}

func (t *Trace) writeMemory(w *bufio.Writer) {
	w.WriteString("HashOwner,HashApp,SampleCount,AverageAllocatedMb")
	for _, p := range []int{1, 5, 25, 50, 75, 95, 99, 100} {
		fmt.Fprintf(w, ",AverageAllocatedMb_pct%d", p)
	}
	w.WriteString("\n")
	type app struct{ owner, name string }
	sum := map[app]float64{}
	var order []app
	for i := range t.Functions {
		f := &t.Functions[i]
		a := app{f.Owner, f.App}
		if _, ok := sum[a]; !ok {
			order = append(order, a)
		}
		sum[a] += f.MemoryMiB
	}
	for _, a := range order {
		fmt.Fprintf(w, "%s,%s,%d", a.owner, a.name, len(t.minutes))
		for range 9 {
			fmt.Fprintf(w, ",%g", sum[a])
		}
		w.WriteString("\n")
	}
}
