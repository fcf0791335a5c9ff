// Package trace is load as providers have published it: which functions there
// are, when they are called, for how long they run and what memory they take. It
// reads the Azure Functions traces of 2019 and 2021 and Huawei's of 2023 as they
// were published, makes traces with published statistics where there are no such
// files, and small representative samples of large ones. `skep load` calls
// functions by it, `skep simulate` does so in virtual time.
package trace

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Trace is a trace in memory, minute by minute: some three bytes for each function and
// minute with calls, and, where it has single invocations, 16 for each.
type Trace struct {
	Functions []Function
	minutes   []column
}

// Function is one function of a trace.
type Function struct {
	Owner, App, Name string
	Trigger          string
	Duration         Quantiles // of an invocation, in seconds, without a cold start
	MemoryMiB        float64   // that it takes
	Calls            int64     // in all of the trace
}

// Invocation is one call.
type Invocation struct {
	At       time.Duration // since the trace began
	Took     time.Duration // for how long it runs
	Function int           // index into Functions
}

// column is one minute: pairs of how much greater a function's index is than the
// last one's and how many calls it has, as varints; and single invocations.
type column struct {
	counts []byte
	last   int // function
	single []Invocation
}

// Minutes that the trace has.
func (t *Trace) Minutes() int { return len(t.minutes) }

// Calls are the invocations of all functions.
func (t *Trace) Calls() (n int64) {
	for i := range t.Functions {
		n += t.Functions[i].Calls
	}
	return n
}

// Bytes that the trace takes in memory, about.
func (t *Trace) Bytes() (n int64) {
	for i := range t.minutes {
		n += int64(cap(t.minutes[i].counts) + 24*cap(t.minutes[i].single))
	}
	return n + int64(len(t.Functions))*200
}

// add counts calls of a function in a minute. Functions come in ascending order
// within a minute.
func (t *Trace) add(function, minute int, calls uint64) {
	if calls == 0 {
		return
	}
	for len(t.minutes) <= minute {
		t.minutes = append(t.minutes, column{})
	}
	c := &t.minutes[minute]
	c.counts = binary.AppendUvarint(c.counts, uint64(function-c.last))
	c.counts = binary.AppendUvarint(c.counts, calls)
	c.last = function
	t.Functions[function].Calls += int64(calls)
}

// addSingle adds one invocation.
func (t *Trace) addSingle(in Invocation) {
	minute := int(in.At / time.Minute)
	for len(t.minutes) <= minute {
		t.minutes = append(t.minutes, column{})
	}
	t.minutes[minute].single = append(t.minutes[minute].single, in)
	t.Functions[in.Function].Calls++
}

// Counts calls f for every function with calls in a minute, in ascending order.
func (t *Trace) Counts(minute int, f func(function int, calls uint64)) {
	c := &t.minutes[minute]
	function := 0
	for b := c.counts; len(b) > 0; {
		gap, n := binary.Uvarint(b)
		calls, m := binary.Uvarint(b[n:])
		b = b[n+m:]
		function += int(gap)
		f(function, calls)
	}
	if len(c.single) == 0 {
		return
	}
	calls := map[int]uint64{}
	var order []int
	for _, in := range c.single {
		if calls[in.Function] == 0 {
			order = append(order, in.Function)
		}
		calls[in.Function]++
	}
	slices.Sort(order)
	for _, function := range order {
		f(function, calls[function])
	}
}

// Minute appends the invocations of a minute to dst, in the order of time. Where the
// trace has only counts they fall anywhere in the minute, those of a timer at the same
// distances; how long each takes is drawn from the function's quantiles. The same seed
// gives the same.
func (t *Trace) Minute(minute int, seed uint64, dst []Invocation) []Invocation {
	c := &t.minutes[minute]
	start := time.Duration(minute) * time.Minute
	first := len(dst)
	r := rand.New(rand.NewPCG(seed, uint64(minute)))
	function := 0
	for b := c.counts; len(b) > 0; {
		gap, n := binary.Uvarint(b)
		calls, m := binary.Uvarint(b[n:])
		b = b[n+m:]
		function += int(gap)
		f := &t.Functions[function]
		phase, step := time.Duration(0), time.Duration(0)
		if f.Trigger == TriggerTimer {
			step = time.Minute / time.Duration(calls)
			phase = time.Duration(mix(seed, uint64(function)) % uint64(max(1, step)))
		}
		for i := range calls {
			at := phase + time.Duration(i)*step
			if step == 0 {
				at = time.Duration(r.Uint64N(uint64(time.Minute)))
			}
			dst = append(dst, Invocation{start + at, f.Duration.draw(r.Uint64()), function})
		}
	}
	dst = append(dst, c.single...)
	sortByTime(dst[first:])
	return dst
}

// mix is a number for two, the same each time (splitmix64).
func mix(a, b uint64) uint64 {
	z := a + (b+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// The triggers of Azure's traces that matter here.
const (
	TriggerHTTP  = "http"
	TriggerTimer = "timer"
)

// Of is a trace of single invocations, which it copies, from the beginning of its first
// minute. Calls and durations of functions are taken from them.
func Of(functions []Function, invocations []Invocation) (*Trace, error) {
	t := &Trace{Functions: slices.Clone(functions)}
	durations := make([][]float32, len(functions))
	for i := range t.Functions {
		t.Functions[i].Calls = 0
	}
	all := slices.Clone(invocations)
	slices.SortStableFunc(all, func(a, b Invocation) int { return cmp.Compare(a.At, b.At) })
	for _, in := range all {
		if in.Function < 0 || in.Function >= len(functions) || in.At < 0 || in.At > maxMinutes*time.Minute || in.Took < 0 || in.Took > maxDuration*time.Second {
			return nil, fmt.Errorf("an invocation at %v of function %d for %v: want one of %d functions, within %d minutes, and at most %d s", in.At, in.Function, in.Took, len(functions), maxMinutes, maxDuration)
		}
		t.addSingle(in)
		durations[in.Function] = append(durations[in.Function], float32(in.Took.Seconds()))
	}
	t.setDurations(durations)
	return t, nil
}

// setDurations sets the quantiles of functions that have some.
func (t *Trace) setDurations(of [][]float32) {
	for i, d := range of {
		if len(d) > 0 {
			t.Functions[i].Duration = quantilesOf(d)
		}
	}
}

// Where is the trace of those functions alone of which keep says so.
func (t *Trace) Where(keep func(*Function) bool) (*Trace, error) {
	functions := []int{}
	for i := range t.Functions {
		if keep(&t.Functions[i]) {
			functions = append(functions, i)
		}
	}
	return t.pick(0, len(t.minutes), functions)
}

// Slice is the part of a trace that has so many minutes from one on.
func (t *Trace) Slice(from, minutes int) (*Trace, error) {
	if from < 0 || minutes < 1 || from+minutes > len(t.minutes) {
		return nil, fmt.Errorf("minutes %d to %d of a trace: it has %d", from, from+minutes, len(t.minutes))
	}
	return t.pick(from, minutes, nil)
}

// pick copies minutes of some functions, in this order; nil: of all. Functions without a
// call in these minutes are left out.
func (t *Trace) pick(from, minutes int, functions []int) (*Trace, error) {
	index := make([]int, len(t.Functions))
	for i := range index {
		index[i] = -1
	}
	out := &Trace{minutes: make([]column, minutes)}
	called := make([]bool, len(t.Functions))
	for m := from; m < from+minutes; m++ {
		t.Counts(m, func(f int, _ uint64) { called[f] = true })
	}
	if functions == nil {
		for i := range t.Functions {
			functions = append(functions, i)
		}
	}
	for _, i := range functions {
		if called[i] {
			index[i] = len(out.Functions)
			f := t.Functions[i]
			f.Calls = 0
			out.Functions = append(out.Functions, f)
		}
	}
	type count struct {
		function int
		calls    uint64
	}
	var counts []count
	for m := range minutes {
		counts = counts[:0]
		c := &t.minutes[from+m]
		function := 0
		for b := c.counts; len(b) > 0; {
			gap, n := binary.Uvarint(b)
			calls, k := binary.Uvarint(b[n:])
			b = b[n+k:]
			if function += int(gap); index[function] >= 0 {
				counts = append(counts, count{index[function], calls})
			}
		}
		slices.SortFunc(counts, func(a, b count) int { return a.function - b.function })
		for _, k := range counts {
			out.add(k.function, m, k.calls)
		}
		for _, in := range c.single {
			if index[in.Function] >= 0 {
				out.addSingle(Invocation{in.At - time.Duration(from)*time.Minute, in.Took, index[in.Function]})
			}
		}
	}
	return out, nil
}
