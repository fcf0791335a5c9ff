package trace

import (
	"bytes"
	"cmp"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	invocations2019 = `HashOwner,HashApp,HashFunction,Trigger,1,2,3
o1,a1,f1,http,0,2,1
o1,a1,f2,timer,1,1,1
o2,a2,f3,queue,0,0,3.0
`
	durations2019 = `HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,percentile_Average_75,percentile_Average_99,percentile_Average_100
o1,a1,f1,100,3,50,200,50,60,80,100,120,190,200
o1,a1,f2,10,3,10,10,10,10,10,10,10,10,10
`
	memory2019 = `HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1
o1,a1,10,200,190
`
	trace2021 = `app,func,end_timestamp,duration
a,f,61.5,0.5
a,g,2.5,1.5
a,f,130,9
`
	requests2023 = `day,time,0,1,2
0,0,10.0,,0
0,60,,5,
0,180,3,,NaN
`
	delay2023     = "day,time,0,1,2\n0,0,0.2,,\n0,60,,1.5,\n0,180,0.4,,\n"
	memory2023    = "day,time,0,1\n0,0,1000,\n0,60,,512\n"
	instances2023 = "day,time,0,1\n0,0,4,\n0,60,,2\n"
)

func read2019(t testing.TB) *Trace {
	tr, err := ReadAzure2019(strings.NewReader(invocations2019), strings.NewReader(durations2019), strings.NewReader(memory2019))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func counts(t *Trace) map[string][]uint64 {
	out := map[string][]uint64{}
	for i := range t.Functions {
		out[t.Functions[i].Name] = make([]uint64, t.Minutes())
	}
	for m := range t.Minutes() {
		t.Counts(m, func(f int, n uint64) { out[t.Functions[f].Name][m] += n })
	}
	return out
}

func TestAzure2019(t *testing.T) {
	tr := read2019(t)
	if got, want := counts(tr), map[string][]uint64{"f1": {0, 2, 1}, "f2": {1, 1, 1}, "f3": {0, 0, 3}}; !reflect.DeepEqual(got, want) {
		t.Errorf("calls %v, want %v", got, want)
	}
	f1, f3 := tr.Functions[0], tr.Functions[2]
	if f1.Duration != (Quantiles{0.05, 0.06, 0.08, 0.1, 0.12, 0.19, 0.2}) || f1.MemoryMiB != 100 || f1.Calls != 3 {
		t.Errorf("%+v", f1)
	}
	if f3.Duration != f1.Duration || f3.MemoryMiB != 200 { // the median of what there is
		t.Errorf("%+v", f3)
	}
}

func TestAzure2021(t *testing.T) {
	tr, err := ReadAzure2021(strings.NewReader(trace2021), 128)
	if err != nil {
		t.Fatal(err)
	}
	var got []Invocation
	for m := range tr.Minutes() {
		got = tr.Minute(m, 1, got)
	}
	// They began at 1, 61 and 121 s; the first is the beginning.
	want := []Invocation{{0, 1500 * time.Millisecond, 1}, {60 * time.Second, 500 * time.Millisecond, 0}, {120 * time.Second, 9 * time.Second, 0}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if tr.Functions[0].MemoryMiB != 128 || tr.Functions[0].Duration[0] != 0.5 || tr.Functions[0].Duration[6] != 9 {
		t.Errorf("%+v", tr.Functions[0])
	}
}

func TestHuawei2023(t *testing.T) {
	tr, err := ReadHuawei2023(strings.NewReader(requests2023), strings.NewReader(delay2023), strings.NewReader(memory2023), strings.NewReader(instances2023), 99)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(tr), map[string][]uint64{"0": {10, 0, 0, 3}, "1": {0, 5, 0, 0}, "2": {0, 0, 0, 0}}; !reflect.DeepEqual(got, want) {
		t.Errorf("calls %v, want %v", got, want)
	}
	if f := tr.Functions[1]; f.Duration.Median() != 1.5 || f.MemoryMiB != 256 || f.Duration[6] != 3 {
		t.Errorf("%+v", f)
	}
	if f := tr.Functions[2]; f.MemoryMiB != 99 {
		t.Errorf("%+v", f)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":          {"", "reading the header"},
		"another header": {"a,b,c\n1,2,3\n", "want HashOwner"},
		"no minute":      {"HashOwner,HashApp,HashFunction,Trigger\n", "the header is"},
		"no number":      {strings.Replace(invocations2019, "2,1", "x,1", 1), `line 2: minute 2: "x" calls`},
		"negative":       {strings.Replace(invocations2019, "2,1", "-2,1", 1), "want a whole number"},
		"half a call":    {strings.Replace(invocations2019, "2,1", "0.5,1", 1), "want a whole number"},
		"short row":      {strings.Replace(invocations2019, "2,1", "2", 1), "on line 2"},
	} {
		if _, err := ReadAzure2019(strings.NewReader(tc.in), nil, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if _, err := ReadAzure2021(strings.NewReader("app,func,end_timestamp,duration\na,b,1,-1\n"), 1); err == nil {
		t.Error("a negative duration was taken")
	}
	if _, err := ReadHuawei2023(strings.NewReader("day,time,0\n0,60,1\n0,0,1\n"), nil, nil, nil, 1); err == nil {
		t.Error("time that goes backwards was taken")
	}
}

// What is written is read again, and a generated trace is nothing else.
func TestWriteAndOpen(t *testing.T) {
	for name, tr := range map[string]*Trace{"read": read2019(t), "made": generate(t, Generator{Functions: 50, Minutes: 30, Seed: 4})} {
		dir := t.TempDir()
		if err := tr.Write(dir); err != nil {
			t.Fatal(err)
		}
		again, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(counts(tr), counts(again)) {
			t.Errorf("%s: other calls after writing", name)
		}
		for i := range tr.Functions {
			a, b := tr.Functions[i], again.Functions[i]
			if a.App != b.App || a.Trigger != b.Trigger || a.Calls != b.Calls || math.Abs(a.MemoryMiB-b.MemoryMiB) > 1e-6*a.MemoryMiB || math.Abs(a.Duration.Mean()-b.Duration.Mean()) > 1e-5 {
				t.Errorf("%s: %+v became %+v", name, a, b)
			}
		}
	}
}

func TestOpenFindsOutWhose(t *testing.T) {
	write := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	azure := write(map[string]string{"invocations_per_function_md.anon.d02.csv": invocations2019, "function_durations_percentiles.anon.d02.csv": durations2019})
	huawei := write(map[string]string{"requests_minute/day_000.csv": requests2023})
	for path, calls := range map[string]int64{azure: 9, huawei: 18, filepath.Join(write(map[string]string{"t.csv": trace2021}), "t.csv"): 3} {
		tr, err := Open(path, Options{})
		if err != nil {
			t.Error(err)
		} else if tr.Calls() != calls {
			t.Errorf("%s: %d calls, want %d", path, tr.Calls(), calls)
		}
	}
	if _, err := Open(azure, Options{Day: 1}); err == nil || !strings.Contains(err.Error(), "has no day 1") {
		t.Errorf("day 1: %v", err)
	}
	if _, err := Open(t.TempDir(), Options{}); err == nil {
		t.Error("an empty directory is a trace")
	}
}

func generate(t testing.TB, g Generator) *Trace {
	t.Helper()
	tr, err := g.Make()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// A minute's calls are as many as are counted, in order, in the minute, the same for the
// same seed, and a timer's are at the same distances.
func TestMinute(t *testing.T) {
	tr := generate(t, Generator{Functions: 3000, Minutes: 20, Seed: 9})
	for m := range tr.Minutes() {
		in := tr.Minute(m, 5, nil)
		if !slices.Equal(in, tr.Minute(m, 5, nil)) {
			t.Fatal("the same seed gives something else")
		}
		if !slices.IsSortedFunc(in, func(a, b Invocation) int { return cmp.Compare(a.At, b.At) }) {
			t.Fatalf("minute %d is not in order", m)
		}
		got := map[int]uint64{}
		for _, i := range in {
			got[i.Function]++
			if int(i.At/time.Minute) != m {
				t.Fatalf("%v is not in minute %d", i.At, m)
			}
			q := tr.Functions[i.Function].Duration
			if s := i.Took.Seconds(); s < float64(q[0])*0.999 || s > float64(q[6])*1.001 {
				t.Fatalf("%v is not in %v", i.Took, q)
			}
		}
		tr.Counts(m, func(f int, n uint64) {
			if got[f] != n {
				t.Fatalf("function %d has %d calls, want %d", f, got[f], n)
			}
		})
	}
	timer := read2019(t)
	var at []time.Duration
	for m := range 3 {
		for _, in := range timer.Minute(m, 1, nil) {
			if in.Function == 1 {
				at = append(at, in.At)
			}
		}
	}
	if at[1]-at[0] != time.Minute || at[2]-at[1] != time.Minute {
		t.Errorf("a timer's calls are at %v", at)
	}
}

func TestDrawHasTheQuantiles(t *testing.T) {
	q := Quantiles{1, 2, 3, 4, 5, 6, 7}
	for chance, want := range map[uint64]float64{0: 1, 1 << 62: 3, 1 << 63: 4, 3 << 62: 5, math.MaxUint64: 7} {
		if got := q.draw(chance).Seconds(); math.Abs(got-want) > 1e-6 {
			t.Errorf("at %x: %v, want %v", chance, got, want)
		}
	}
}

// The statistics that Generator says it has.
func TestGeneratorHasThePublishedStatistics(t *testing.T) {
	const n = 30000
	tr := generate(t, Generator{Functions: n, Seed: 1})
	near := func(what string, got, want, by float64) {
		t.Helper()
		if math.Abs(got-want) > by {
			t.Errorf("%s: %.4g, want %.4g within %.4g", what, got, want, by)
		}
	}
	share := func(is func(f *Function) bool) float64 {
		k := 0
		for i := range tr.Functions {
			if is(&tr.Functions[i]) {
				k++
			}
		}
		return float64(k) / n * 100
	}
	near("% at most once an hour", share(func(f *Function) bool { return f.Calls <= 24 }), 45, 3)
	near("% at most once a minute", share(func(f *Function) bool { return f.Calls <= 1440 }), 81, 2)
	calls := make([]int64, n)
	for i := range tr.Functions {
		calls[i] = tr.Functions[i].Calls
	}
	slices.Sort(calls)
	top := int64(0)
	for _, c := range calls[n-n*186/1000:] {
		top += c
	}
	near("% of calls of the busiest 18.6%", float64(top)/float64(tr.Calls())*100, 99.6, 0.6)
	near("million calls a day of 50,000 functions", float64(tr.Calls())/n*50000/1e6, 893, 250)
	for _, s := range triggerShares {
		near("% "+s.trigger, share(func(f *Function) bool { return f.Trigger == s.trigger }), s.percent, 1)
	}
	size := map[string]int{}
	for i := range tr.Functions {
		size[tr.Functions[i].App]++
	}
	one, ten := 0.0, 0.0
	for _, s := range size {
		if s == 1 {
			one++
		}
		if s <= 10 {
			ten++
		}
	}
	near("% of applications with one function", one/float64(len(size))*100, 54, 2)
	near("% of applications with at most ten", ten/float64(len(size))*100, 95, 1)
	near("% that run for less than a second", share(func(f *Function) bool { return f.Duration.Mean() < 1 }), 56.4, 3) // Φ(0.38/2.36); the paper: 50
	// Median of the Burr distribution, of applications with one function.
	var mib []float64
	for i := range tr.Functions {
		if size[tr.Functions[i].App] == 1 {
			mib = append(mib, tr.Functions[i].MemoryMiB)
		}
	}
	slices.Sort(mib)
	near("median MB", mib[len(mib)/2], burrLambda*math.Pow(math.Pow(0.5, -1/burrK)-1, 1/burrC), 4)
	hours := make([]float64, 24)
	for m := range tr.Minutes() {
		tr.Counts(m, func(_ int, n uint64) { hours[m/60] += float64(n) })
	}
	near("quietest hour over busiest", slices.Min(hours)/slices.Max(hours), 0.5, 0.12)
}

func TestSampleIsLikeTheWhole(t *testing.T) {
	tr := generate(t, Generator{Functions: 5000, Minutes: 60, Seed: 2})
	sample, distance, err := tr.Sample(50, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(sample.Functions) != 50 || distance > 0.1 {
		t.Errorf("%d functions at a distance of %v", len(sample.Functions), distance)
	}
	// Taking the first fifty is worse.
	first := make([]int, 50)
	var all []int
	for i := range tr.Functions {
		if tr.Functions[i].Calls > 0 {
			all = append(all, i)
		}
	}
	copy(first, all)
	worse := 0.0
	whole := tr.features(all)
	for i, f := range tr.features(first) {
		worse += wasserstein(f, whole[i]) / 3
	}
	if worse < distance {
		t.Errorf("the first fifty are at %v, the sample at %v", worse, distance)
	}
	byName := counts(tr)
	for name, got := range counts(sample) {
		if !slices.Equal(got, byName[name]) {
			t.Fatalf("%s has other calls in the sample", name)
		}
	}
	if _, _, err := tr.Sample(5001, 1); err == nil {
		t.Error("more than there are")
	}
}

func TestWasserstein(t *testing.T) {
	for _, tc := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{1, 2}, []float64{1, 2}, 0},
		{[]float64{0}, []float64{3}, 3},
		{[]float64{0, 1}, []float64{0, 0, 1, 1}, 0},
		{[]float64{0, 4}, []float64{0, 2, 4}, (1./6)*2 + (1./6)*2},
	} {
		if got := wasserstein(tc.a, tc.b); math.Abs(got-tc.want) > 1e-9 {
			t.Errorf("%v, %v: %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

func TestSlice(t *testing.T) {
	s, err := read2019(t).Slice(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts(s), map[string][]uint64{"f1": {2, 1}, "f2": {1, 1}, "f3": {0, 3}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if _, err := read2019(t).Slice(2, 2); err == nil {
		t.Error("a minute too many")
	}
}

func FuzzAzure2019(f *testing.F) {
	f.Add([]byte(invocations2019), []byte(durations2019), []byte(memory2019))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		tr, err := ReadAzure2019(bytes.NewReader(a), bytes.NewReader(b), bytes.NewReader(c))
		check(t, tr, err)
	})
}

func FuzzAzure2021(f *testing.F) {
	f.Add([]byte(trace2021))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := ReadAzure2021(bytes.NewReader(b), 128)
		check(t, tr, err)
	})
}

func FuzzHuawei2023(f *testing.F) {
	f.Add([]byte(requests2023), []byte(delay2023), []byte(memory2023), []byte(instances2023))
	f.Fuzz(func(t *testing.T, a, b, c, d []byte) {
		tr, err := ReadHuawei2023(bytes.NewReader(a), bytes.NewReader(b), bytes.NewReader(c), bytes.NewReader(d), 128)
		check(t, tr, err)
	})
}

// check holds what was read to what it promises.
func check(t *testing.T, tr *Trace, err error) {
	if err != nil {
		return
	}
	for i := range tr.Functions {
		f := &tr.Functions[i]
		if !slices.IsSorted(f.Duration[:]) || f.Duration[0] < 0 || f.Duration[6] > maxDuration || !(f.MemoryMiB >= 0) {
			t.Fatalf("%+v", f)
		}
	}
	if tr.Calls() > 10000 {
		return
	}
	total := int64(0)
	for m := range tr.Minutes() {
		in := tr.Minute(m, 1, nil)
		for _, i := range in {
			if int(i.At/time.Minute) != m || i.Took < 0 {
				t.Fatalf("minute %d: %+v", m, i)
			}
		}
		total += int64(len(in))
	}
	if total != tr.Calls() {
		t.Fatalf("%d invocations, %d counted", total, tr.Calls())
	}
}

func TestOf(t *testing.T) {
	functions := []Function{{Name: "a", MemoryMiB: 100, Calls: 7}, {Name: "b"}}
	in := []Invocation{{90 * time.Second, 2 * time.Second, 0}, {time.Second, time.Second, 0}}
	tr, err := Of(functions, in)
	if err != nil {
		t.Fatal(err)
	}
	if tr.Minutes() != 2 || tr.Calls() != 2 || tr.Functions[0].Calls != 2 || tr.Functions[1].Calls != 0 || tr.Functions[0].MemoryMiB != 100 || functions[0].Calls != 7 {
		t.Errorf("%+v", tr.Functions)
	}
	if q := tr.Functions[0].Duration; q[0] != 1 || q[len(q)-1] != 2 {
		t.Errorf("durations %v", q)
	}
	if got := tr.Minute(1, 1, nil); len(got) != 1 || got[0] != in[0] {
		t.Errorf("in the second minute: %v", got)
	}
	for _, bad := range []Invocation{{0, 0, 2}, {0, 0, -1}, {-1, 0, 0}, {0, -1, 0}} {
		if _, err := Of(functions, []Invocation{bad}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestWhere(t *testing.T) {
	tr, err := Generator{Functions: 200, Minutes: 10, Seed: 1}.Make()
	if err != nil {
		t.Fatal(err)
	}
	often := func(f *Function) bool { return f.Calls > 20 }
	some, err := tr.Where(often)
	if err != nil || len(some.Functions) == 0 || len(some.Functions) == len(tr.Functions) {
		t.Fatalf("%d of %d functions, %v", len(some.Functions), len(tr.Functions), err)
	}
	calls := int64(0)
	for i := range tr.Functions {
		if often(&tr.Functions[i]) {
			calls += tr.Functions[i].Calls
		}
	}
	for i := range some.Functions {
		if !often(&some.Functions[i]) {
			t.Errorf("%+v is in it", some.Functions[i])
		}
	}
	if some.Calls() != calls || some.Minutes() != 10 {
		t.Errorf("%d calls in %d minutes, want %d in 10", some.Calls(), some.Minutes(), calls)
	}
}
