package trace

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// ReadAzure2021 reads the Azure Functions invocation trace of 2021
// (AzureFunctionsInvocationTrace2021.md of Azure's public datasets): a line for each
// invocation with when it ended and for how long it ran. The first invocation begins
// at the trace's beginning. It says nothing of memory: mib is what each function takes.
func ReadAzure2021(r io.Reader, mib float64) (*Trace, error) {
	_, rows, err := table(r, 4, "app", "func", "end_timestamp", "duration")
	if err != nil {
		return nil, err
	}
	index := map[[2]string]int{}
	t := &Trace{}
	var all []Invocation
	durations := [][]float32{}
	err = rows(func(row []string) error {
		end, err := number(row[2])
		if err != nil {
			return err
		}
		took, err := number(row[3])
		if err != nil {
			return err
		}
		if took < 0 || took > maxDuration || end-took < -maxDuration || end > maxMinutes*60 {
			return fmt.Errorf("an invocation that ended at %v s and took %v s: want durations of 0 to %v s, and a year at most", end, took, maxDuration)
		}
		f, ok := index[[2]string{row[0], row[1]}]
		if !ok {
			f = len(t.Functions)
			app, name := strings.Clone(row[0]), strings.Clone(row[1])
			index[[2]string{app, name}] = f
			t.Functions = append(t.Functions, Function{App: app, Name: name, Trigger: TriggerHTTP, MemoryMiB: mib})
			durations = append(durations, nil)
		}
		durations[f] = append(durations[f], float32(took))
		all = append(all, Invocation{At: time.Duration((end - took) * float64(time.Second)), Took: time.Duration(took * float64(time.Second)), Function: f})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b Invocation) int { return cmp.Compare(a.At, b.At) })
	for _, in := range all {
		in.At -= all[0].At
		t.addSingle(in)
	}
	t.setDurations(durations)
	return t, nil
}
